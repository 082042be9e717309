// Package wire holds the words that host and agent speak beyond plain SSH. The
// transport, authentication, channels and flow control are SSH's (RFC 4253,
// 4254); the names below are our own global and channel requests.
package wire

import "strings"

// Names of global requests. Each is answered with a JSON document, or with a
// failure whose payload is the reason in plain text.
const (
	ReqReady    = "mvm-ready@mvm"    // -> Ready
	ReqSync     = "mvm-sync@mvm"     // writes all file systems out
	ReqPowerOff = "mvm-poweroff@mvm" // asks the init; answered before it happens
	ReqReboot   = "mvm-reboot@mvm"
	ReqSetTime  = "mvm-settime@mvm"  // <- SetTime
	ReqIdentity = "mvm-identity@mvm" // <- guest.NewIdentity
	ReqConsole  = "mvm-console@mvm"  // <- ConsoleSize
	ReqRenew    = "mvm-renew@mvm"    // <- Renew; answered before it happens
)

// ReqExec is a channel request on a session: Exec as JSON. Unlike SSH's "exec"
// it needs no shell in the guest and takes an argument list. A failure is
// followed by the reason on the channel's stderr.
const ReqExec = "mvm-exec@mvm"

// Exec is a command to run.
type Exec struct {
	Argv  []string `json:"argv,omitempty"`  // looked up in PATH
	Shell string   `json:"shell,omitempty"` // a line for the user's shell, when Argv is empty; both empty: a login shell
	Env   []string `json:"env,omitempty"`   // "NAME=value", over the login environment
	Dir   string   `json:"dir,omitempty"`   // "" is the home directory
	User  string   `json:"user,omitempty"`  // name, uid, name:group or uid:gid; "" is the connection's user
	Data  string   `json:"data,omitempty"`  // ticket of the stream that is its standard input and output
}

// Ready is what the agent says of itself and its guest.
type Ready struct {
	Version  string  `json:"version"` // of the mvm that made the agent's configuration
	Hostname string  `json:"hostname"`
	Uptime   float64 `json:"uptime"` // seconds since the guest's kernel started
	BootID   string  `json:"boot_id"`
	Init     string  `json:"init"`       // "systemd", "busybox", "sysvinit", "openrc-init", or the name of PID 1
	State    string  `json:"init_state"` // "starting" or "running": whether the init has come up
	Kernel   string  `json:"kernel"`     // release, as uname -r
}

// SetTime sets the guest's clock, which stands still while a VM is paused.
type SetTime struct {
	UnixNano int64 `json:"unix_nano"`
}

// ConsoleSize is the size of the terminal at which the serial console is shown. The
// line itself has no way to say it.
type ConsoleSize struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// Renew has the agent be replaced by the program that ReceiveCommand has put beside
// it. It refuses while anything else runs or is connected.
type Renew struct {
	Version string `json:"version"` // of the mvm that the new one is of
	Check   bool   `json:"check"`   // only say whether it would
}

// ReceiveCommand is the argument with which the agent's program reads its successor
// from standard input; the SHA-256 of that follows, in hex.
const ReceiveCommand = "receive"

// serverPrefix begins what the agent says as SSH's version string.
const serverPrefix = "SSH-2.0-mvm_agent_"

// ServerVersion is the SSH version string of an agent of an mvm, which is how the
// host learns the version before anything else. A minus may not stand there (RFC
// 4253, section 4.2).
func ServerVersion(version string) string {
	return serverPrefix + strings.Map(func(r rune) rune {
		switch {
		case r == '-':
			return '~'
		case r <= ' ' || r > '~':
			return '_'
		}
		return r
	}, version[:min(len(version), 64)])
}

// AgentVersion reads ServerVersion back; "" when it is none of an agent's.
func AgentVersion(server string) string {
	v, ok := strings.CutPrefix(server, serverPrefix)
	if !ok {
		return ""
	}
	return strings.ReplaceAll(v, "~", "-")
}

// MaxRequest bounds a JSON document of either side.
const MaxRequest = 256 << 10
