-- Whether a kernel boots under the pagetable-based KVM of hosts without hardware
-- virtualisation (CONFIG_PVM_GUEST), by its configuration or as stated at import.
alter table kernels add column pvm_guest integer not null default 0;
