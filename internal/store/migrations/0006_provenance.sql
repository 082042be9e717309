-- Where it came from, and how that was checked; '' for what is older than these columns.
alter table images add column source text not null default '';
alter table images add column digest text not null default '';
alter table images add column verification text not null default '';
alter table images add column signed_by text not null default '';
alter table kernels add column source text not null default '';
alter table kernels add column digest text not null default '';
alter table kernels add column verification text not null default '';
alter table kernels add column signed_by text not null default '';
alter table binaries add column source text not null default '';
alter table binaries add column digest text not null default '';
alter table binaries add column verification text not null default '';
alter table binaries add column signed_by text not null default '';
