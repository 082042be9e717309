package cli

import (
	"errors"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/cli/render"
)

// printBatch prints the names of what a verb was done to, or with JSON the
// items, and hands err on.
func printBatch[T any](out *render.Output, b mvm.Batch[T], name func(T) string, err error) error {
	items := b.Items()
	if out.JSON {
		return errors.Join(err, render.List(out, items))
	}
	for _, item := range items {
		if failed := out.Line(name(item)); failed != nil {
			return errors.Join(err, failed)
		}
	}
	return err
}

// inspect shows each selected object: a tree, or with JSON one object, or an
// array when several were asked for. What cannot be found is told at the end.
func inspect[T any](out *render.Output, ids []string, get func(id string) (title string, v T, err error)) error {
	var all []T
	var errs []error
	for _, id := range ids {
		title, v, err := get(id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, v)
		if out.JSON {
			continue
		}
		nodes, err := out.Nodes(v)
		if err != nil {
			return err
		}
		if err := out.Tree(title, nodes); err != nil {
			return err
		}
	}
	if out.JSON {
		errs = append(errs, inspectJSON(out, len(ids), all))
	}
	return errors.Join(errs...)
}

func inspectJSON[T any](out *render.Output, asked int, all []T) error {
	switch {
	case asked > 1:
		return render.List(out, all)
	case len(all) == 1:
		return out.Object(all[0])
	}
	return nil
}
