-- Where a running VM's disks cannot be changed: 'attach' is a volume that it gets when
-- it starts the next time, 'detach' one that it has until it ends.
alter table volume_attachments add column pending text not null default '';

create trigger vms_settle_volumes after update of status on vms when new.status in ('starting', 'stopped', 'crashed') begin
    delete from volume_attachments where vm_id = new.id and pending = 'detach';
    update volume_attachments set pending = '' where vm_id = new.id and pending <> '';
end;
