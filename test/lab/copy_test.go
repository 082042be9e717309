package lab

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/mvmctl/mvm/internal/fsx"
	"github.com/mvmctl/mvm/internal/guest/mux"
	"github.com/mvmctl/mvm/internal/guest/wire"
)

// agentPort is where agents listen unless a VM is told otherwise.
const agentPort = 1024

// copies sees that files and trees come through Firecracker's vsock unchanged, both
// ways, and that the port on which their data moves answers there.
func (u user) copies(name string, v inspected) {
	u.t.Helper()
	u.wantDataPort(v)
	dir := u.t.TempDir()
	file, back, tree := filepath.Join(dir, "file"), filepath.Join(dir, "back"), filepath.Join(dir, "tree")
	content := make([]byte, 6<<20+7)
	_, _ = rand.Read(content) // never fails (crypto/rand)
	err := os.WriteFile(file, content, 0o600)
	for i := range 200 {
		sub := filepath.Join(tree, strconv.Itoa(i/20))
		err = errors.Join(err, os.MkdirAll(sub, 0o755), os.WriteFile(filepath.Join(sub, strconv.Itoa(i)), content[i:i*7], 0o640))
	}
	if err = errors.Join(err, os.Symlink("../0/1", filepath.Join(tree, "3", "link"))); err != nil {
		u.t.Fatal(err)
	}

	u.must("cp", file, name+":/root/file")
	sum := sha256.Sum256(content)
	if got := u.agent(name, "sha256sum", "/root/file"); !strings.HasPrefix(got, hex.EncodeToString(sum[:])) {
		u.t.Errorf("the file that was copied in has the sum %q, want %x", got, sum)
	}
	u.must("cp", name+":/root/file", back)
	if data, err := os.ReadFile(back); err != nil || !bytes.Equal(data, content) {
		u.t.Errorf("the file that came back has %d bytes, %v, and is another one", len(data), err)
	}
	u.must("cp", tree, name+":/root")
	u.must("cp", name+":/root/tree", filepath.Join(dir, "again"))
	if was, is := u.tree(tree), u.tree(filepath.Join(dir, "again")); was != is {
		u.t.Errorf("the tree that came back is\n%s, it was\n%s", is, was)
	}
	u.must("exec", name, "--", "rm", "-rf", "/root/file", "/root/tree")
}

// wantDataPort hands the agent a ticket as a copy does, which falls back to SSH where
// that is not taken.
func (u user) wantDataPort(v inspected) {
	u.t.Helper()
	var socket string
	_ = filepath.WalkDir(v.Filesystem.Directory, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "agent.sock" && d.Type()&fs.ModeSocket != 0 {
			socket = path
		}
		return nil
	})
	conn, err := fsx.DialUnix(u.t.Context(), socket)
	if err != nil {
		u.t.Errorf("the vsock of the VM: %v", err)
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	answer := make([]byte, len(wire.DataOK))
	if err = mux.WriteConnect(conn, wire.DataPort(agentPort)); err == nil {
		_, err = mux.ReadOK(conn)
	}
	if err == nil {
		err = wire.WriteTicket(conn, strings.Repeat("5e", wire.TicketLen/2))
	}
	if err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	if err != nil || string(answer) != wire.DataOK {
		u.t.Errorf("the agent's data port says %q, %v", answer, err)
	}
}

// tree is one line for each file, directory and link below dir.
func (u user) tree(dir string) string {
	u.t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		out.WriteString(rel + " " + fi.Mode().String())
		switch d.Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			out.WriteString(" " + hex.EncodeToString(sum[:8]))
		case fs.ModeSymlink:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			out.WriteString(" " + link)
		}
		out.WriteByte('\n')
		return nil
	})
	if err != nil {
		u.t.Error(err)
	}
	return out.String()
}
