package firecracker

type Driver struct{}
