// Package op is the operation journal: it runs a plan of side effects such that
// at the end all of them are there and the database says so, or none of them,
// also when the process is killed at any point in between.
//
// It must not know what the steps do, or what kinds of object there are. It
// keeps its rows through package store and nothing else.
//
// # How
//
// Run reserves names and addresses in the transaction that inserts the
// operation's row. Each step's data is written to the journal before the step
// takes effect. The transaction that makes the object real drops the operation:
// that is the commit point. Whoever fails or is cancelled before it reverts the
// begun steps, newest first, and undoes the reservation. Whoever is killed
// leaves the rows behind, and a lock that the kernel has released; the next
// command's Recover finds the two and does the same.
//
// Forward is for removing, which is never taken back: it is begun in one
// transaction, then finished by this process or by the next command.
package op

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/store"
)

// Step is one side effect: a struct of data that json.Marshal writes and a
// Decoder reads.
//
// Apply makes the effect. It fails before any effect when what it would make is
// there already and somebody else's. Revert removes the effect if it is there
// and ours, and is otherwise content: it may be called when Apply never ran, was
// killed half-way, or when Revert has run before. It has to work from the data
// that the step had before Apply: what Apply learns (a pid) is lost in a crash.
type Step interface {
	Kind() string
	Apply(ctx context.Context) error
	Revert(ctx context.Context) error
}

// Decoder makes a step from what json.Marshal made of it.
type Decoder func(data []byte) (Step, error)

// Decode is the Decoder of steps of type *T.
func Decode[T any, P interface {
	*T
	Step
}](data []byte) (Step, error) {
	p := P(new(T))
	return p, json.Unmarshal(data, p)
}

// Op is an operation to run.
type Op struct {
	Kind      string // "vm.create"; the key of its registered functions
	Subject   string // the object's name
	SubjectID string // its id; one operation at a time may work on an id

	// Reserve claims names, addresses and phases. It runs in the transaction
	// that begins the operation; an error ends it with no trace.
	Reserve func(*store.Tx) error

	// UndoData is handed to the function registered by OnUndo, OnFinish or
	// OnStuck for Kind. It is data and not a closure because that function may
	// run in another process. It is read after Reserve, which may fill it.
	UndoData []byte

	Steps []Step

	// Plan, when set, gives the steps instead, from what Reserve found out.
	Plan func() ([]Step, error)

	// Commit makes the object real in the transaction that ends the operation;
	// it may be nil. An error, or a crash before its end, takes everything back.
	Commit func(*store.Tx) error

	// KeepOnFailure leaves the effects of the steps and the reservation as they
	// are when the operation fails, for a person to look at. OnStuck is called.
	KeepOnFailure bool

	OnStep func(kind string) // told of each step before it is applied; may be nil
}

// UndoFunc ends an operation in the database: it removes what Reserve has put
// there (OnUndo), or what the removed object had (OnFinish). data is the
// operation's UndoData.
type UndoFunc func(tx *store.Tx, subjectID string, data []byte) error

// StuckFunc notes on the object that an operation on it failed and left effects
// behind, typically by moving it to the phase error with the reason.
type StuckFunc func(tx *store.Tx, subjectID string, data []byte, reason string) error

// Journal runs operations and mends those of processes that died.
type Journal struct {
	st       *store.Store
	dir      string // of the lock files
	decoders map[string]Decoder
	fault    faults

	mu     sync.RWMutex
	undo   map[string]UndoFunc
	finish map[string]UndoFunc
	stuck  map[string]StuckFunc
}

// revertLimit bounds how long reverting one step may take.
const revertLimit = 30 * time.Second

// New makes a journal on st with lock files in dir, which is made when first
// needed. decoders has one entry for each kind of step. All On functions are to
// be registered before the first Run or Recover. The environment variable
// MVM_FAULT is read here; see fault.go.
func New(st *store.Store, dir string, decoders map[string]Decoder) *Journal {
	return &Journal{
		st: st, dir: dir, decoders: decoders, fault: readFaults(),
		undo: map[string]UndoFunc{}, finish: map[string]UndoFunc{}, stuck: map[string]StuckFunc{},
	}
}

// OnUndo registers what takes back the reservation of a kind of operation, in
// the transaction that drops the operation after its steps were reverted.
func (j *Journal) OnUndo(kind string, f UndoFunc) { set(j, j.undo, kind, f) }

// OnFinish registers what removes the rows of a Forward operation's object, in
// the transaction that drops the operation.
func (j *Journal) OnFinish(kind string, f UndoFunc) { set(j, j.finish, kind, f) }

// OnStuck registers what is noted when an operation of a kind could not be
// reverted or finished, or was to be kept.
func (j *Journal) OnStuck(kind string, f StuckFunc) { set(j, j.stuck, kind, f) }

func set[F any](j *Journal, m map[string]F, kind string, f F) {
	j.mu.Lock()
	defer j.mu.Unlock()
	m[kind] = f
}

func get[F any](j *Journal, m map[string]F, kind string) (F, bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	f, ok := m[kind]
	return f, ok
}

// decode makes a step from its row.
func (j *Journal) decode(kind string, data []byte) (Step, error) {
	d, ok := j.decoders[kind]
	if !ok {
		return nil, mvm.Errorf(mvm.ErrUnsupported, "this mvm does not know steps of kind %s", mvm.Quote(kind)).
			WithHint("use the mvm that began the operation, or a newer one")
	}
	s, err := d(data)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrBroken, "the journal's data of step %s cannot be read: %w", mvm.Quote(kind), err).
			WithHint("remove the object with 'rm --force'")
	}
	return s, nil
}
