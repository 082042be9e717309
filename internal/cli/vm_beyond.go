package cli

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/api"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// vmBeyond are the flags of what a VM can be besides what the reference has.
type vmBeyond struct {
	balloon             int
	metadata            string
	diskLimit, netLimit string
	egress              string

	binary, path string
	vsockPort    int
	writeback    bool
	hugePages    bool
}

const limitHelp = "such as 10M, 500ops or 10M,500ops,burst=50M, each a second; 0 for none"

// changeable are the flags that vm create and vm update share.
func (b *vmBeyond) changeable(f *pflag.FlagSet) {
	f.IntVar(&b.balloon, "balloon", 0, "MiB of memory that the guest is to give up; needs a balloon device, which --balloon at create makes")
	f.StringVar(&b.metadata, "metadata", "", "file with a JSON object for the guest's metadata service (Firecracker's MMDS v2); - is stdin")
	f.StringVar(&b.diskLimit, "disk-limit", "", "limit of the root disk: "+limitHelp)
	f.StringVar(&b.egress, "egress", "", "what it may reach outside its network: allow, deny, or a list such as 192.0.2.0/24,example.com,*.example.org")
	f.StringVar(&b.netLimit, "net-limit", "", "limit of the network in each direction: "+limitHelp)
}

func (b *vmBeyond) flags(f *pflag.FlagSet) {
	b.changeable(f)
	f.StringVar(&b.binary, "binary", "", "Firecracker binary: name:version or id prefix; see 'mvm binary ls'")
	f.StringVar(&b.path, "firecracker-bin", "", "path of a Firecracker binary")
	f.IntVar(&b.vsockPort, "vsock-port", 0, "vsock port of the guest's agent")
	f.BoolVar(&b.writeback, "writeback", false, "cache writes to the root disk on the host until the guest flushes them, as is done in any case")
	f.BoolVar(&b.hugePages, "huge-pages", false, "guest memory from the host's pool of 2 MiB pages")
}

func (b *vmBeyond) resolve(cmd *cobra.Command, in *api.VMCreateInput) error {
	in.BinaryID, in.FirecrackerBin, in.VsockPort, in.Writeback, in.HugePages = b.binary, b.path, b.vsockPort, b.writeback, b.hugePages
	if err := onlyOne(cmd, "binary", "firecracker-bin"); err != nil {
		return err
	}
	if cmd.Flags().Changed("balloon") {
		in.Balloon = &mvm.VMBalloon{MiB: b.balloon, DeflateOnOOM: true, StatsSec: 5}
	}
	var err error
	if in.Metadata, err = b.readMetadata(cmd); err != nil {
		return err
	}
	if in.DiskLimit, err = limit(cmd, "disk-limit", b.diskLimit); err != nil {
		return err
	}
	if in.NetLimit, err = limit(cmd, "net-limit", b.netLimit); err != nil {
		return err
	}
	if cmd.Flags().Changed("egress") {
		in.Egress, err = mvm.ParseEgress(b.egress)
	}
	return err
}

// maxMetadata is more than any metadata service holds.
const maxMetadata = 1 << 20

func (b *vmBeyond) readMetadata(cmd *cobra.Command) (json.RawMessage, error) {
	if b.metadata == "" {
		return nil, nil
	}
	path := b.metadata
	if path == "-" {
		path = "/dev/stdin"
	}
	data, err := os.ReadFile(path)
	switch {
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrInvalid, "cannot read the metadata: %w", err).WithHint("name a file with one JSON object")
	case len(data) > maxMetadata:
		return nil, usagef("--metadata: %s has more than %d bytes", mvm.Quote(b.metadata), maxMetadata).withHint("see '%s --help'", cmd.CommandPath())
	}
	return data, nil
}

// limit reads a flag such as 10M,500ops,burst=50M.
func limit(cmd *cobra.Command, flag, text string) (*mvm.VMLimit, error) {
	if !cmd.Flags().Changed(flag) {
		return nil, nil
	}
	l := &mvm.VMLimit{}
	for part := range strings.SplitSeq(text, ",") {
		var err error
		switch value, isBurst := strings.CutPrefix(part, "burst="); {
		case part == "0":
		case isBurst:
			l.BurstBytes, err = mvm.ParseSize(value)
		case strings.HasSuffix(part, "ops"):
			l.OpsPerSec, err = strconv.ParseInt(strings.TrimSuffix(part, "ops"), 10, 64)
		default:
			l.BytesPerSec, err = mvm.ParseSize(strings.TrimSuffix(part, "/s"))
		}
		if err != nil {
			return nil, usagef("--%s cannot be %s", flag, mvm.Quote(text)).withHint("write a limit %s", limitHelp)
		}
	}
	return l, nil
}
