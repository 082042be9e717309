-- How a container image wants to be run, as JSON; null for images of machines.
alter table images add column container text not null default 'null';
