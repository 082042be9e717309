alter table volumes add column is_shareable integer not null default 0;
alter table volumes add column writeback integer not null default 0;
alter table volumes add column fs_type text not null default '';

-- Which volumes a VM has is written here alone. What the rows of volumes and VMs
-- say of it (status, vm_id, volume_ids) follows by the triggers.
create table volume_attachments (
    volume_id    text not null references volumes (id) on delete cascade,
    vm_id        text not null references vms (id) on delete cascade,
    position     integer not null,
    is_read_only integer not null,
    mount_point  text not null,
    attached_at  text not null,
    primary key (vm_id, volume_id)
) without rowid;
create index volume_attachments_volume on volume_attachments (volume_id);
insert into volume_attachments select id, vm_id, 0, is_read_only, '', updated_at from volumes where vm_id is not null;

create trigger volume_attachments_insert after insert on volume_attachments begin
    update volumes set status = 'attached', vm_id = (
        select vm_id from volume_attachments where volume_id = new.volume_id order by attached_at, vm_id limit 1)
        where id = new.volume_id;
    update vms set volume_ids = (select json_group_array(volume_id) from (
        select volume_id from volume_attachments where vm_id = new.vm_id order by position))
        where id = new.vm_id;
end;
create trigger volume_attachments_delete after delete on volume_attachments begin
    update volumes set vm_id = (
        select vm_id from volume_attachments where volume_id = old.volume_id order by attached_at, vm_id limit 1)
        where id = old.volume_id;
    update volumes set status = iif(vm_id is null, 'available', 'attached') where id = old.volume_id;
    update vms set volume_ids = (select json_group_array(volume_id) from (
        select volume_id from volume_attachments where vm_id = old.vm_id order by position))
        where id = old.vm_id;
end;
drop trigger volumes_detach;
create trigger vms_detach before delete on vms begin
    delete from volume_attachments where vm_id = old.id;
end;
create trigger volumes_detach before delete on volumes begin
    delete from volume_attachments where volume_id = old.id;
end;
