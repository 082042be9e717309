-- The subvolume of a btrfs image that has the root, where that is not what is mounted
-- without naming one.
alter table images add column fs_subvolume text;
