-- What the disk of a volume is called within a VM, where that is not made of the
-- volume's id: a copy in a VM that was restored has the name that the guest knows.
alter table volumes add column disk_id text not null default '';
