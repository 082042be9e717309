package mvm

// ContainerConfig is how a container image wants to be run (OCI image specification,
// "config.md"). Images of machines have none.
type ContainerConfig struct {
	Entrypoint   []string          `json:"entrypoint"`
	Cmd          []string          `json:"cmd"` // the arguments of the entrypoint, or without one the command
	Env          []string          `json:"env"` // "NAME=value"
	WorkingDir   string            `json:"working_dir"`
	User         string            `json:"user"`          // name, uid, name:group or uid:gid; "" is root
	StopSignal   string            `json:"stop_signal"`   // "TERM", "QUIT", …; "" is TERM
	ExposedPorts []string          `json:"exposed_ports"` // "80/tcp"
	Volumes      []string          `json:"volumes"`       // directories whose content should outlive a container
	Labels       map[string]string `json:"labels"`
}

// Args are the command that a container of the image runs. Each of entrypoint and
// cmd stands in for the image's own where it is not nil; another entrypoint leaves
// the image's arguments out, as docker run has it.
func (c *ContainerConfig) Args(entrypoint, cmd []string) []string {
	args := c.Cmd
	if entrypoint == nil {
		entrypoint = c.Entrypoint
	} else {
		args = nil
	}
	if cmd != nil {
		args = cmd
	}
	return append(append([]string{}, entrypoint...), args...)
}

// VMContainer is what a VM of a container image runs.
type VMContainer struct {
	Args       []string `json:"args"` // the main process; commands that are run besides have the rest in common with it
	Env        []string `json:"env"`
	WorkingDir string   `json:"working_dir"`
	User       string   `json:"user"`
	StopSignal string   `json:"stop_signal,omitempty"`
	Idle       bool     `json:"idle,omitempty"` // the main process is not started: there is the agent only
}
