package mvm

import "errors"

// BatchEntry is the outcome for one identifier of a batch.
type BatchEntry[T any] struct {
	Identifier string `json:"identifier"` // as the caller gave it
	Item       T      `json:"item"`       // meaningful when Err is nil
	Err        error  `json:"-"`
}

// Batch is the outcome of a verb applied to several objects: one entry per
// identifier, in the order given.
type Batch[T any] struct {
	Entries []BatchEntry[T]
}

// Items returns the items of the entries that went well.
func (b Batch[T]) Items() []T {
	items := make([]T, 0, len(b.Entries))
	for _, e := range b.Entries {
		if e.Err == nil {
			items = append(items, e.Item)
		}
	}
	return items
}

// Err joins the errors of all entries; nil when all went well.
func (b Batch[T]) Err() error {
	var errs []error
	for _, e := range b.Entries {
		if e.Err != nil {
			errs = append(errs, e.Err)
		}
	}
	return errors.Join(errs...)
}
