package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mvmctl/mvm"
)

// family is the methods of one kind of item.
type family[T any] struct {
	insert, upsert, update func(context.Context, *T) error
	get                    func(context.Context, string) (*T, error)
	list                   func(context.Context) ([]*T, error)
	remove, setDefault     func(context.Context, string) error
	soft                   bool
	resolved               []string // fields that are not stored
}

// suite puts items with a value in every field through all methods: a field
// that the item got and the table did not is found here.
func (f family[T]) suite(t *testing.T) {
	ctx := t.Context()
	same := cmp.Options{cmpopts.IgnoreFields(*new(T), append(f.resolved, "UpdatedAt")...), cmpopts.EquateEmpty()}
	equal := func(what string, got, want *T) {
		t.Helper()
		if d := cmp.Diff(want, got, same); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	read := func(id string) *T {
		t.Helper()
		v, err := f.get(ctx, id)
		must(t, err)
		return v
	}

	one, two := filled[T](1, f.resolved), filled[T](2, f.resolved)
	must(t, f.insert(ctx, one))
	must(t, f.insert(ctx, two))
	equal("inserted", read("id1"), one)
	if got := reflect.ValueOf(one).Elem().FieldByName("UpdatedAt").String(); got == "UpdatedAt1" {
		t.Error("UpdatedAt was not set")
	}
	wantError(t, f.insert(ctx, filled[T](1, f.resolved)), mvm.ErrExists, "id1")

	changed := filled[T](3, f.resolved)
	setID(changed, "id1")
	must(t, f.update(ctx, changed))
	reflect.ValueOf(changed).Elem().FieldByName("CreatedAt").SetString("CreatedAt1")
	equal("updated", read("id1"), changed)
	equal("the other one", read("id2"), two)
	gone := filled[T](4, f.resolved)
	wantError(t, f.update(ctx, gone), mvm.ErrNotFound, `"id4"`)

	if f.upsert != nil {
		must(t, f.upsert(ctx, gone))
		equal("upserted", read("id4"), gone)
		again := filled[T](5, f.resolved)
		setID(again, "id4")
		must(t, f.upsert(ctx, again))
		reflect.ValueOf(again).Elem().FieldByName("CreatedAt").SetString("CreatedAt4")
		equal("upserted again", read("id4"), again)
		must(t, f.remove(ctx, "id4"))
	}
	if f.setDefault != nil {
		for _, id := range []string{"id1", "id2", "id2"} {
			must(t, f.setDefault(ctx, id))
			if got := defaults(t, f.list); !slices.Equal(got, []string{id}) {
				t.Errorf("defaults are %v, want %s", got, id)
			}
		}
		wantError(t, f.setDefault(ctx, "none"), mvm.ErrNotFound, `"none"`)
	}

	must(t, f.remove(ctx, "id1"))
	must(t, f.remove(ctx, "id1"))
	if ids := idsOf(t, f.list); !slices.Equal(ids, []string{"id2"}) {
		t.Errorf("left are %v", ids)
	}
	if f.soft {
		if got := reflect.ValueOf(read("id1")).Elem().FieldByName("DeletedAt"); got.IsNil() {
			t.Error("a deleted item has no DeletedAt")
		}
		wantError(t, f.setDefault(ctx, "id1"), mvm.ErrNotFound, `"id1"`)
	} else {
		_, err := f.get(ctx, "id1")
		wantError(t, err, mvm.ErrNotFound, `"id1"`)
	}
	must(t, f.insert(ctx, filled[T](1, f.resolved))) // what was unique is free again
	equal("inserted anew", read("id1"), filled[T](1, f.resolved))
}

func TestItems(t *testing.T) {
	t.Run("vm", func(t *testing.T) {
		s := open(t)
		family[mvm.VMInstanceItem]{
			insert: s.InsertVM, update: s.UpdateVM, get: s.GetVM, list: s.ListVMs, remove: s.DeleteVM,
			resolved: []string{"Kernel", "Image", "Binary", "Network", "Volumes", "VolumeIDs"}, // see AttachVolume
		}.suite(t)
	})
	t.Run("snapshot", func(t *testing.T) {
		s := open(t)
		family[mvm.SnapshotItem]{
			insert: s.InsertSnapshot, update: s.UpdateSnapshot, get: s.GetSnapshot, list: s.ListSnapshots, remove: s.DeleteSnapshot,
		}.suite(t)
	})
	t.Run("network", func(t *testing.T) {
		s := open(t)
		family[mvm.NetworkItem]{
			insert: s.InsertNetwork, upsert: s.UpsertNetwork, update: s.UpdateNetwork, get: s.GetNetwork, list: s.ListNetworks,
			remove: s.DeleteNetwork, setDefault: s.SetDefaultNetwork, soft: true, resolved: []string{"Leases", "IPTablesRules", "VMs"},
		}.suite(t)
	})
	t.Run("image", func(t *testing.T) {
		s := open(t)
		family[mvm.ImageItem]{
			insert: s.InsertImage, upsert: s.UpsertImage, update: s.UpdateImage, get: s.GetImage, list: s.ListImages,
			remove: s.DeleteImage, setDefault: s.SetDefaultImage, soft: true, resolved: []string{"VMs"},
		}.suite(t)
	})
	t.Run("kernel", func(t *testing.T) {
		s := open(t)
		family[mvm.KernelItem]{
			insert: s.InsertKernel, upsert: s.UpsertKernel, update: s.UpdateKernel, get: s.GetKernel, list: s.ListKernels,
			remove: s.DeleteKernel, setDefault: s.SetDefaultKernel, soft: true, resolved: []string{"VMs"},
		}.suite(t)
	})
	t.Run("binary", func(t *testing.T) {
		s := open(t)
		sameName := func(do func(context.Context, *mvm.BinaryItem) error) func(context.Context, *mvm.BinaryItem) error {
			return func(ctx context.Context, b *mvm.BinaryItem) error { b.Name = "firecracker"; return do(ctx, b) }
		}
		family[mvm.BinaryItem]{
			insert: sameName(s.InsertBinary), upsert: sameName(s.UpsertBinary), update: sameName(s.UpdateBinary), get: s.GetBinary,
			list: s.ListBinaries, remove: s.DeleteBinary, setDefault: s.SetDefaultBinary, soft: true, resolved: []string{"VMs", "Name"},
		}.suite(t)
	})
	t.Run("key", func(t *testing.T) {
		s := open(t)
		family[mvm.SSHKeyItem]{
			insert: s.InsertKey, upsert: s.UpsertKey, update: s.UpdateKey, get: s.GetKey, list: s.ListKeys, remove: s.DeleteKey,
			setDefault: func(ctx context.Context, id string) error { return s.SetDefaultKeys(ctx, id) },
		}.suite(t)
	})
	t.Run("volume", func(t *testing.T) {
		s := open(t)
		noVM := func(do func(context.Context, *mvm.VolumeItem) error) func(context.Context, *mvm.VolumeItem) error {
			return func(ctx context.Context, v *mvm.VolumeItem) error { v.VMID = nil; return do(ctx, v) }
		}
		family[mvm.VolumeItem]{
			insert: noVM(s.InsertVolume), update: noVM(s.UpdateVolume), get: s.GetVolume, list: s.ListVolumes, remove: s.DeleteVolume,
			resolved: []string{"VMID", "Status"}, // see AttachVolume
		}.suite(t)
	})
}

// filled returns an item of which every stored field has a value of its own.
func filled[T any](n int, resolved []string) *T {
	item := new(T)
	v := reflect.ValueOf(item).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if name == "IsDefault" || slices.Contains(resolved, name) && name != "Name" && name != "VMID" {
			continue // triggers have a say in which one is the default
		}
		fill(v.Field(i), fmt.Sprint(name, n), n)
	}
	if !slices.Contains(resolved, "ID") {
		setID(item, fmt.Sprint("id", n))
	}
	if f := v.FieldByName("Subnet"); f.IsValid() {
		f.SetString(fmt.Sprintf("10.%d.0.0/24", n))
	}
	if f := v.FieldByName("DeletedAt"); f.IsValid() {
		f.SetZero()
	}
	return item
}

func fill(v reflect.Value, text string, n int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(n%2 == 1)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(1000 + n))
	case reflect.Uint32:
		v.SetUint(uint64(1000 + n))
	case reflect.Float64:
		v.SetFloat(float64(n) + 0.5)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text, n)
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			v.SetBytes(fmt.Appendf(nil, `{"%s":%d}`, text, n))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(v.Index(i), fmt.Sprint(text, "-", i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(text), reflect.ValueOf(text))
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.Tag.Get("json") != "-" && !refersToItem(f.Type) {
				fill(v.Field(i), text+f.Name, n)
			}
		}
	default:
		panic("fill cannot fill " + v.Kind().String() + " " + text)
	}
}

// refersToItem reports whether a field holds other items, which are stored by
// themselves.
func refersToItem(t reflect.Type) bool {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return false
	}
	_, ok := t.FieldByName("ID")
	return ok
}

func setID(item any, id string) { reflect.ValueOf(item).Elem().FieldByName("ID").SetString(id) }

func idsOf[T any](t *testing.T, list func(context.Context) ([]*T, error)) []string {
	t.Helper()
	return pick(t, list, func(reflect.Value) bool { return true })
}

func defaults[T any](t *testing.T, list func(context.Context) ([]*T, error)) []string {
	t.Helper()
	return pick(t, list, func(v reflect.Value) bool { return v.FieldByName("IsDefault").Bool() })
}

func pick[T any](t *testing.T, list func(context.Context) ([]*T, error), which func(reflect.Value) bool) []string {
	t.Helper()
	items, err := list(t.Context())
	must(t, err)
	var ids []string
	for _, item := range items {
		if v := reflect.ValueOf(item).Elem(); which(v) {
			ids = append(ids, v.FieldByName("ID").String())
		}
	}
	return ids
}
