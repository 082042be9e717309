-- Times are text: UTC, RFC 3339. Booleans are 0 or 1. Lists are JSON text.

create table networks (
    id            text primary key not null check (id <> ''),
    name          text not null check (name <> ''),
    subnet        text not null,
    bridge        text not null,
    ipv4_gateway  text not null,
    bridge_active integer not null,
    nat_enabled   integer not null,
    is_default    integer not null,
    is_present    integer not null,
    created_at    text not null,
    updated_at    text not null,
    deleted_at    text,
    nat_gateways  text
);
create unique index networks_name on networks (name) where deleted_at is null;
create unique index networks_subnet on networks (subnet) where deleted_at is null;
create unique index networks_bridge on networks (bridge) where deleted_at is null;

create table images (
    id                      text primary key not null check (id <> ''),
    type                    text not null,
    version                 text not null,
    name                    text not null,
    arch                    text not null,
    path                    text not null,
    fs_type                 text not null,
    minimum_rootfs_size_mib integer not null,
    original_size           integer not null,
    is_default              integer not null,
    is_present              integer not null,
    pulled_at               text not null,
    created_at              text not null,
    updated_at              text not null,
    distro                  text,
    fs_uuid                 text,
    compressed_size         integer,
    compression_ratio       real,
    compressed_format       text,
    deleted_at              text
);
create unique index images_version on images (type, version, arch) where deleted_at is null;

create table kernels (
    id           text primary key not null check (id <> ''),
    name         text not null,
    base_name    text not null,
    version      text not null,
    arch         text not null,
    type         text not null,
    path         text not null,
    modules_path text not null,
    is_default   integer not null,
    is_present   integer not null,
    created_at   text not null,
    updated_at   text not null,
    deleted_at   text
);
-- base_name tells imported kernels of one version apart; it is constant within
-- the other types.
create unique index kernels_version on kernels (type, version, arch, base_name) where deleted_at is null;

create table binaries (
    id           text primary key not null check (id <> ''),
    name         text not null,
    version      text not null,
    full_version text not null,
    ci_version   text,
    path         text not null,
    is_default   integer not null,
    is_present   integer not null,
    created_at   text not null,
    updated_at   text not null,
    deleted_at   text
);
create unique index binaries_version on binaries (name, version) where deleted_at is null;

create table ssh_keys (
    id               text primary key not null check (id <> ''),
    name             text not null check (name <> ''),
    fingerprint      text not null,
    algorithm        text not null,
    comment          text not null,
    public_key_path  text not null,
    is_default       integer not null,
    is_present       integer not null,
    created_at       text not null,
    updated_at       text not null,
    private_key_path text
);
create unique index ssh_keys_name on ssh_keys (name);
create unique index ssh_keys_fingerprint on ssh_keys (fingerprint);

create table vms (
    id                 text primary key not null check (id <> ''),
    name               text not null check (name <> ''),
    status             text not null,
    pid                integer not null,
    ipv4               text not null,
    mac                text not null collate nocase,
    network_id         text not null,
    tap_device         text not null,
    image_id           text not null,
    kernel_id          text not null,
    binary_id          text not null,
    api_socket_path    text not null,
    config_path        text not null,
    cloud_init_mode    text not null,
    vcpu_count         integer not null,
    mem_size_mib       integer not null,
    disk_size_mib      integer not null,
    rootfs_path        text not null,
    rootfs_suffix      text not null,
    pci_enabled        integer not null,
    nested_virt        integer not null,
    enable_logging     integer not null,
    enable_metrics     integer not null,
    enable_console     integer not null,
    created_at         text not null,
    updated_at         text not null,
    exit_code          integer,
    log_path           text,
    serial_output_path text,
    nocloud_net_port   integer,
    nocloud_net_pid    integer,
    relay_pid          integer,
    relay_socket_path  text,
    process_start_time integer,
    lsm_flags          text,
    boot_args          text,
    ssh_keys           text not null,
    ssh_user           text,
    volume_ids         text not null,
    cpu_config         text,
    hypervisor         text not null,
    accel              text not null,
    dns_server         text not null,
    status_reason      text not null,
    handle             text,
    has_agent          integer not null
);
create unique index vms_name on vms (name);
create unique index vms_mac on vms (mac) where mac <> '';
create unique index vms_tap_device on vms (tap_device) where tap_device <> '';
create unique index vms_nocloud_net_port on vms (nocloud_net_port) where nocloud_net_port is not null;
create index vms_network on vms (network_id);
create index vms_image on vms (image_id);
create index vms_kernel on vms (kernel_id);

create table leases (
    id         integer primary key,
    network_id text not null references networks (id),
    ipv4       text not null,
    vm_id      text references vms (id) on delete cascade,
    leased_at  text not null,
    expires_at text
);
create unique index leases_address on leases (network_id, ipv4);
create index leases_vm on leases (vm_id);

create table forwards (
    id         integer primary key,
    vm_id      text not null references vms (id) on delete cascade,
    protocol   text not null check (protocol in ('tcp', 'udp')),
    host_addr  text not null,
    host_port  integer not null check (host_port between 1 and 65535),
    guest_port integer not null check (guest_port between 1 and 65535),
    created_at text not null
);
create unique index forwards_port on forwards (protocol, host_addr, host_port);
create index forwards_vm on forwards (vm_id);

create table volumes (
    id           text primary key not null check (id <> ''),
    name         text not null check (name <> ''),
    size_bytes   integer not null,
    format       text not null,
    path         text not null,
    status       text not null,
    vm_id        text references vms (id) on delete set null,
    created_at   text not null,
    updated_at   text not null,
    is_read_only integer not null
);
create unique index volumes_name on volumes (name);
create index volumes_vm on volumes (vm_id);
create trigger volumes_detach before delete on vms begin
    update volumes set vm_id = null, status = 'available' where vm_id = old.id;
end;

create table firewall_rules (
    id               integer primary key,
    table_name       text not null,
    chain_name       text not null,
    rule_type        text not null,
    protocol         text not null,
    source           text not null,
    destination      text not null,
    in_interface     text not null,
    out_interface    text not null,
    target           text not null,
    sport            integer not null,
    dport            integer not null,
    network_id       text not null,
    is_active        integer not null,
    network_name     text,
    command_string   text,
    comment_tag      text,
    created_at       text,
    last_verified_at text
);
create index firewall_rules_network on firewall_rules (network_id);

create table settings (
    category text not null,
    key      text not null,
    value    text not null,
    primary key (category, key)
) without rowid;

create table host_state (
    key        text primary key not null,
    value      text not null,
    updated_at text not null
) without rowid;

create table events (
    id        integer primary key autoincrement,
    at        text not null,
    vm_id     text not null,
    vm_name   text not null,
    kind      text not null,
    from_     text not null,
    to_       text not null,
    cause     text not null,
    exit_code integer
);
create index events_vm on events (vm_id, id);

create table ops (
    id         text primary key not null,
    kind       text not null,
    subject    text not null,
    subject_id text not null,
    forward    integer not null,
    keep       integer not null,
    pid        integer not null,
    state      text not null,
    data       blob,
    reason     text not null,
    started_at text not null
);
create index ops_subject on ops (subject_id);

create table op_steps (
    op_id text not null references ops (id) on delete cascade,
    n     integer not null,
    kind  text not null,
    data  blob not null,
    primary key (op_id, n)
) without rowid;

-- At most one default of a kind: whoever becomes it takes it from the others.
create trigger networks_default_insert after insert on networks when new.is_default begin
    update networks set is_default = 0 where is_default and id <> new.id;
end;
create trigger networks_default_update after update of is_default on networks when new.is_default begin
    update networks set is_default = 0 where is_default and id <> new.id;
end;
create trigger images_default_insert after insert on images when new.is_default begin
    update images set is_default = 0 where is_default and id <> new.id;
end;
create trigger images_default_update after update of is_default on images when new.is_default begin
    update images set is_default = 0 where is_default and id <> new.id;
end;
create trigger kernels_default_insert after insert on kernels when new.is_default begin
    update kernels set is_default = 0 where is_default and id <> new.id;
end;
create trigger kernels_default_update after update of is_default on kernels when new.is_default begin
    update kernels set is_default = 0 where is_default and id <> new.id;
end;
-- firecracker, jailer and qemu have a default each.
create trigger binaries_default_insert after insert on binaries when new.is_default begin
    update binaries set is_default = 0 where is_default and id <> new.id and name = new.name;
end;
create trigger binaries_default_update after update of is_default on binaries when new.is_default begin
    update binaries set is_default = 0 where is_default and id <> new.id and name = new.name;
end;
