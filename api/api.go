// Package api is the Go API of mvm, and all that the mvm command does: one
// operation type per kind of object, one method per use case. It is the only
// place where store, network, VMM drivers, images and kernels are put together.
//
//	m, err := api.Open(ctx, api.Config{})
//	if err != nil { … }
//	defer m.Close()
//	res, err := m.VM.Create(ctx, api.VMCreateInput{Name: "web", Wait: api.WaitReady})
//
// Open touches nothing on the host; the cache directory and its database are
// made by the first operation that needs them. There is no global state: several
// Clients, also on one cache directory and in several processes, work side by
// side. Errors wrap one of the kinds in package mvm.
package api

import (
	"context"
	"os"

	"github.com/mvmctl/mvm"
)

// Version is the version of mvm; releases set it at link time.
var Version = "0.1.0-dev"

// Config says where a Client keeps things. Every zero value has a default.
type Config struct {
	CacheDir    string // $MVM_CACHE_DIR, else ~/.cache/mvmctl
	ConfigDir   string // $MVM_CONFIG_DIR, else ~/.config/mvmctl
	TempDir     string // $MVM_TEMP_DIR, else CacheDir/tmp
	AssetMirror string // $MVM_ASSET_MIRROR: a directory or URL that stands in for every download host

	// Executable is the program that is started as supervisor of a VM and, where
	// no guest agent was built in, put into guests. It has to be a program
	// that calls api.ChildMain first thing in main. Default: os.Executable().
	Executable string

	// Notice, when set, is told what a user should know once, such as which
	// hypervisor was chosen and why.
	Notice func(string)
}

// Client gives access to all operations.
type Client struct {
	Config   *ConfigOperation
	Cache    *CacheOperation
	VM       *VMOperation
	Snapshot *SnapshotOperation
	Network  *NetworkOperation
	Image    *ImageOperation
	Kernel   *KernelOperation
	Key      *KeyOperation
	Volume   *VolumeOperation
	Binary   *BinaryOperation
	Host     *HostOperation
	SSH      *SSHOperation
	Exec     *ExecOperation
	CP       *CPOperation
	Console  *ConsoleOperation
	Log      *LogOperation
	Event    *EventOperation
	Init     *InitOperation
	Update   *UpdateOperation

	core *core
}

// Open makes a Client. It fails only when no cache directory can be named.
func Open(_ context.Context, cfg Config) (*Client, error) {
	c, err := newCore(cfg)
	if err != nil {
		return nil, err
	}
	return &Client{
		Config: &ConfigOperation{c}, Cache: &CacheOperation{c},
		VM: &VMOperation{c}, Snapshot: &SnapshotOperation{c}, Network: &NetworkOperation{c}, Image: &ImageOperation{c}, Kernel: &KernelOperation{c},
		Key: &KeyOperation{c}, Volume: &VolumeOperation{c}, Binary: &BinaryOperation{c}, Host: &HostOperation{c}, SSH: &SSHOperation{c}, Init: &InitOperation{c},
		Exec: &ExecOperation{c}, CP: &CPOperation{c}, Console: &ConsoleOperation{c}, Log: &LogOperation{c}, Event: &EventOperation{c},
		Update: &UpdateOperation{c},
		core:   c,
	}, nil
}

// Close releases the database. VMs go on running.
func (c *Client) Close() error { return c.core.close() }

// CacheDir returns the directory that everything is kept in.
func (c *Client) CacheDir() string { return c.core.paths.cache }

// Option changes how one call works.
type Option func(*callOptions)

type callOptions struct{ progress mvm.ProgressFunc }

// OnProgress has a long operation report to f.
func OnProgress(f mvm.ProgressFunc) Option { return func(o *callOptions) { o.progress = f } }

func options(opts []Option) callOptions {
	var o callOptions
	for _, f := range opts {
		f(&o)
	}
	return o
}

func envOr(value, name string) string {
	if value != "" {
		return value
	}
	return os.Getenv(name)
}
