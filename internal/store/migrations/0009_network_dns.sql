-- Whether the gateway of a network answers DNS.
alter table networks add column dns_enabled integer not null default 1;
