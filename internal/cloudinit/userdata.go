package cloudinit

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/mvmctl/mvm"
)

// MaxUserData is how large user data may be, in bytes, packed or not: all of it is
// held in memory, and for some modes in the guest's initramfs.
const MaxUserData = 1 << 20

// UserData is a user's own data, read and found sound.
type UserData struct {
	config   *yaml.Node // where it is one cloud-config
	parts    []part     // the same, or what else it is, as parts of a message
	hasUsers bool       // a cloud-config in it has the key users
}

// format is a kind of user data, which its first line tells (docs.cloud-init.io,
// "User data formats").
type format struct{ prefix, contentType string }

// formats are those that cloud-init knows; of two prefixes the longer comes first.
var formats = []format{
	{"#cloud-config-archive", "text/cloud-config-archive"},
	{"#cloud-config-jsonp", "text/cloud-config-jsonp"},
	{"#cloud-config", typeConfig},
	{"#cloud-boothook", "text/cloud-boothook"},
	{"#include-once", "text/x-include-once-url"},
	{"#include", "text/x-include-url"},
	{"#part-handler", "text/part-handler"},
	{"## template: jinja", "text/jinja2"},
	{"#!", "text/x-shellscript"},
}

const typeConfig = "text/cloud-config"

// ReadUserData reads a file of user data. Errors: mvm.ErrNotFound, mvm.ErrInvalid
// with the line where there is one; each with a hint.
func ReadUserData(path string) (*UserData, error) {
	name := "user data " + mvm.Quote(path)
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, mvm.Errorf(mvm.ErrNotFound, "%s is not there", name).WithHint("name a file that begins with #cloud-config, for example")
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s cannot be read: %w", name, err).WithHint("see whether the file can be read by you")
	case !st.Mode().IsRegular():
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s is no regular file", name).WithHint("name a file that begins with #cloud-config, for example")
	case st.Size() > MaxUserData:
		return nil, tooLarge(name)
	}
	data, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s cannot be read: %w", name, err).WithHint("see whether the file can be read by you")
	}
	return ParseUserData(name, data)
}

func tooLarge(name string) error {
	return mvm.Errorf(mvm.ErrInvalid, "%s is larger than %d KiB", name, MaxUserData>>10).WithHint("have it fetch what is large, with #include or in runcmd")
}

// ParseUserData reads user data; name is what errors call it.
func ParseUserData(name string, data []byte) (*UserData, error) {
	if len(data) > MaxUserData {
		return nil, tooLarge(name)
	}
	data, err := unpack(data)
	if errors.Is(err, errTooLarge) {
		return nil, tooLarge(name)
	}
	u := &UserData{}
	if err == nil {
		err = u.read(data)
	}
	var at *lineError
	switch {
	case err == nil:
		return u, nil
	case errors.As(err, &at) && at.line > 0:
		return nil, mvm.Errorf(mvm.ErrInvalid, "%s, %s", name, err).WithHint("mend that line; 'cloud-init schema --config-file FILE' checks the rest")
	}
	return nil, mvm.Errorf(mvm.ErrInvalid, "%s: %w", name, err).WithHint("begin it with #cloud-config, or with #! for a script; see docs.cloud-init.io for other formats")
}

var errTooLarge = errors.New("it is too large unpacked")

// unpack undoes gzip, which cloud-init does too.
func unpack(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return data, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, MaxUserData+1))
	switch {
	case err != nil:
		return nil, err
	case len(out) > MaxUserData:
		return nil, errTooLarge
	}
	return out, nil
}

func (u *UserData) read(data []byte) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("it is empty")
	}
	if isMessage(data) {
		return u.readMessage(data)
	}
	f, ok := formatOf(data)
	if !ok {
		return errors.New("its first line is none that cloud-init knows")
	}
	if f.contentType == typeConfig {
		c, err := u.readConfig(data)
		if err != nil {
			return err
		}
		u.config = c
	}
	u.parts = append(u.parts, encodePart(f.contentType, data))
	return nil
}

// readConfig reads a cloud-config and notes what our part of the data depends on.
func (u *UserData) readConfig(data []byte) (*yaml.Node, error) {
	c, err := parseConfig(data)
	if err != nil {
		return nil, err
	}
	if err := checkConfig(c); err != nil {
		return nil, err
	}
	if users := get(c, "users"); users != nil && !isNull(users) {
		u.hasUsers = true
	}
	return c, nil
}

// formatOf tells the format by the beginning, as cloud-init does (type_from_starts_with
// in its handlers).
func formatOf(data []byte) (format, bool) {
	start := strings.ToLower(string(bytes.TrimLeft(data[:min(len(data), 4096)], " \t\r\n")))
	i := slices.IndexFunc(formats, func(f format) bool { return strings.HasPrefix(start, f.prefix) })
	if i < 0 {
		return format{}, false
	}
	return formats[i], true
}
