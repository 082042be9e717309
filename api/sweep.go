package api

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mvmctl/mvm/internal/store"
)

// sweepKey is where files stand that a committed operation has no more use for.
// They are written down in the transaction that commits it, so that whoever is
// killed right after leaves the next command to remove them.
const sweepKey = "sweep"

// noteSweep writes files down to be removed.
func noteSweep(ctx context.Context, tx *store.Tx, paths ...string) error {
	var all []string
	if _, err := tx.GetHostState(ctx, sweepKey, &all); err != nil {
		return err
	}
	return tx.SetHostState(ctx, sweepKey, append(all, paths...))
}

// sweep removes them. What cannot be removed is tried again by the next command.
func (c *core) sweep(ctx context.Context, st *store.Store) {
	var all []string
	if some, err := st.GetHostState(ctx, sweepKey, &all); err != nil || !some {
		return
	}
	var gone []string
	for _, path := range all {
		// Of what stands in a database only copies of disks of ours are removed.
		if !strings.Contains(filepath.Base(path), swapOld) || removeFile(path) == nil {
			gone = append(gone, path)
		}
	}
	_ = st.Tx(ctx, func(tx *store.Tx) error {
		var now []string
		if _, err := tx.GetHostState(ctx, sweepKey, &now); err != nil {
			return err
		}
		left := slices.DeleteFunc(now, func(path string) bool { return slices.Contains(gone, path) })
		if len(left) == 0 {
			return tx.DeleteHostState(ctx, sweepKey)
		}
		return tx.SetHostState(ctx, sweepKey, left)
	})
}
