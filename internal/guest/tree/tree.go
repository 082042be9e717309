// Package tree copies files and trees between a host and a guest as a tar stream.
// Both sides run the same code: Pack reads files and writes the stream, Unpack
// reads the stream and puts the files in place, all or none. Neither trusts the
// other: what is unpacked stays below its destination whatever the stream says.
// It knows neither VMs nor connections.
package tree

import (
	"archive/tar"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// Code tells apart the ways in which a copy fails that a caller reports by name.
type Code string

// The codes.
const (
	NotFound Code = "source-not-found"
	Exists   Code = "destination-exists"
	NotDir   Code = "destination-not-directory"
	Other    Code = "other"
)

// Error is a copy that failed, on either side.
type Error struct {
	Code   Code   `json:"code"`
	Path   string `json:"path"`   // as the side that failed knows it
	Reason string `json:"reason"` // one line
}

// Error returns path and reason; the path is quoted.
func (e *Error) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return fmt.Sprintf("%q: %s", e.Path, e.Reason)
}

// failed makes an *Error of what the system said about a path.
func failed(path string, err error) *Error {
	var ours *Error
	if errors.As(err, &ours) {
		return ours
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &Error{Other, path, err.Error()}
}

// Target says where a stream is unpacked.
type Target struct {
	// Path is an existing directory, into which everything goes under its own name;
	// or else, for one source only, the name that it gets.
	Path string `json:"path"`

	// Expect are the names that the sources have; AnyName stands for one that is not
	// known. A sender that sends something else is refused. Empty expects anything.
	Expect []string `json:"expect,omitempty"`

	Dir    bool `json:"dir,omitempty"`    // Path has to be a directory: there are several sources
	Force  bool `json:"force,omitempty"`  // replace files that exist
	Owners bool `json:"owners,omitempty"` // keep numeric owners and the set-user-ID bits; needs root
}

// AnyName is the name of a source that only the sender knows.
const AnyName = "."

// Names returns what to expect of sources: their last names.
func Names(sources []string) []string {
	var names []string
	for _, s := range sources {
		name := path.Base(s)
		if name == "." || name == ".." || name == "/" {
			name = AnyName
		}
		names = append(names, name)
	}
	return names
}

// guestList holds a sender to what was asked for: without, who asks for notes.txt
// could get a .bashrc beside it.
type guestList struct {
	names   map[string]bool
	unknown int // how many more names are welcome
	open    bool
}

func (t Target) guestList() *guestList {
	l := &guestList{names: map[string]bool{}, open: len(t.Expect) == 0}
	for _, n := range t.Expect {
		if n == AnyName {
			l.unknown++
		} else {
			l.names[n] = true
		}
	}
	return l
}

// check refuses the first part of a name in the stream that nobody asked for.
func (l *guestList) check(top string) error {
	if l.open || l.names[top] {
		return nil
	}
	if l.unknown == 0 {
		return &Error{Other, "", "the sender sends more than what was asked for"}
	}
	l.unknown--
	l.names[top] = true
	return nil
}

// Stats is what was copied.
type Stats struct {
	Files   int      `json:"files"` // files, directories and links
	Bytes   int64    `json:"bytes"` // of files' content
	Skipped []string `json:"skipped,omitempty"`
}

// maxSkipped bounds how many skipped paths are named.
const maxSkipped = 20

// endRecord marks the end of a whole stream; without it the stream broke off.
const endRecord = "MVM.end"

func writeEnd(tw *tar.Writer) error {
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "end", PAXRecords: map[string]string{endRecord: "1"}})
}

// StageName makes a name for the directory in which files wait for the end of the
// stream.
func StageName() string { return ".mvm-cp-" + rand.Text()[:10] }

// request is what Serve is told on its command line.
type request struct {
	Sources []string `json:"sources,omitempty"`
	Target  Target   `json:"target,omitzero"`
}

// Args returns the arguments after the program's name with which Serve packs
// sources or, when there are none, unpacks into a target.
func Args(sources []string, t Target) []string {
	word := "pack"
	if len(sources) == 0 {
		word = "unpack"
	}
	data, _ := json.Marshal(request{sources, t}) // strings and flags: never fails
	return []string{word, string(data)}
}

// Serve is the guest's side: it packs to out or unpacks from in. How it went
// stands as one line of JSON on report, Stats or Error; it returns the exit
// status.
func Serve(args []string, in io.Reader, out, report io.Writer) int {
	var r request
	err := errors.New("the request cannot be read")
	var s Stats
	if len(args) == 2 && json.Unmarshal([]byte(args[1]), &r) == nil {
		if args[0] == "pack" {
			s, err = Pack(out, r.Sources)
		} else {
			s, err = Unpack(in, r.Target)
		}
	}
	if err != nil {
		_ = json.NewEncoder(report).Encode(failed("", err))
		return 1
	}
	if json.NewEncoder(report).Encode(s) != nil {
		return 1
	}
	return 0
}
