alter table vms add column options text not null default '{}';

create table snapshots (
    id             text primary key not null check (id <> ''),
    name           text not null check (name <> ''),
    vm_id          text not null,
    vm_name        text not null,
    hypervisor     text not null,
    vmm_version    text not null,
    accel          text not null,
    cpu            text not null,
    path           text not null,
    size_bytes     integer not null,
    vcpu_count     integer not null,
    mem_size_mib   integer not null,
    source_vm      text not null,
    volume_ids     text not null,
    created_at     text not null,
    updated_at     text not null,
    quiesced_guest integer not null
);
create unique index snapshots_name on snapshots (name);
create index snapshots_vm on snapshots (vm_id);
