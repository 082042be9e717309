package rootfs

import (
	"context"
	"errors"
	"io"
	"path/filepath"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
)

// FromSquashfs makes the file dest out of a squashfs image, which sqfs2tar reads. On
// an error there is no dest.
func FromSquashfs(ctx context.Context, r run.Runner, file, dest string, o Options) (Result, error) {
	abs, err := filepath.Abs(file) // so that no name looks like an option
	if err != nil {
		return Result{}, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	in, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := r.Run(ctx, run.Cmd{Name: "sqfs2tar", Args: []string{"--root-becomes", ".", "--no-skip", abs}, Stdout: out})
		_ = out.CloseWithError(err)
		ended <- err
	}()
	b, err := New(ctx, dest, o)
	if err != nil {
		_ = in.CloseWithError(err)
		<-ended
		return Result{}, err
	}
	defer b.Discard()
	err = b.Tar(in)
	if err == nil { // what stands behind the archive's end
		_, err = io.Copy(io.Discard, in)
	}
	if err != nil {
		stop()
	}
	_ = in.CloseWithError(err)
	toolErr := <-ended
	var exit *run.ExitError
	switch {
	case errors.As(toolErr, &exit) && exit.Code > 0:
		return Result{}, mvm.Errorf(mvm.ErrInvalid, "it cannot be read as squashfs: %w", toolErr).WithHint("get it anew")
	case err != nil:
		return Result{}, err
	case toolErr != nil:
		return Result{}, toolErr
	}
	return b.Close()
}
