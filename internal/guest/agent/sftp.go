package agent

import (
	"errors"
	"io"
	"os"

	"github.com/pkg/sftp"
)

// stdio is the process's standard streams as one.
type stdio struct{}

func (stdio) Read(p []byte) (int, error)  { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (stdio) Close() error                { return errors.Join(os.Stdin.Close(), os.Stdout.Close()) }

// ServeSFTP serves files on the standard streams, as the user that the process
// runs as, relative to its working directory.
func ServeSFTP() error {
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	srv, err := sftp.NewServer(stdio{}, sftp.WithServerWorkingDirectory(dir), sftp.WithAllocator())
	if err != nil {
		return err
	}
	if err := srv.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
