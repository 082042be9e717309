package mvm_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestStableJSON holds the JSON of every item against a golden file: programs read
// it. A field may be added; one that changes its name or its type, or goes, breaks
// them, and is announced in docs/compatibility.md first.
func TestStableJSON(t *testing.T) {
	for _, v := range []any{
		&mvm.VMInstanceItem{}, &mvm.NetworkItem{}, &mvm.NetworkLeaseItem{}, &mvm.FirewallRule{}, &mvm.ImageItem{}, &mvm.KernelItem{},
		&mvm.KernelPullResult{}, &mvm.BinaryItem{}, &mvm.SSHKeyItem{}, &mvm.VolumeItem{}, &mvm.VolumeAttachment{}, &mvm.SnapshotItem{},
		&mvm.VMExportConfig{}, &mvm.ProgressEvent{},
	} {
		typ := reflect.TypeOf(v).Elem()
		fill(reflect.ValueOf(v).Elem(), 0)
		got, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", "json", typ.Name()+".json")
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v (go test -update makes it)", err)
		}
		if d := cmp.Diff(string(bytes.TrimSpace(want)), string(got)); d != "" {
			t.Errorf("the JSON of %s is another than programs know (-known +now):\n%s", typ.Name(), d)
		}
		back := reflect.New(typ)
		if err := json.Unmarshal(got, back.Interface()); err != nil {
			t.Errorf("%s does not read its own JSON: %v", typ.Name(), err)
		}
	}
}

// fill gives every field a value that is its type's own. Items refer to each other;
// two deep shows how.
func fill(v reflect.Value, deep int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Pointer:
		if v.Type().Elem().Kind() == reflect.Struct && deep > 1 {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), deep+1)
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			v.SetBytes([]byte(`{"any":"JSON"}`))
			return
		}
		elem := v.Type().Elem()
		if elem.Kind() == reflect.Pointer && deep > 1 {
			return
		}
		list := reflect.MakeSlice(v.Type(), 1, 1)
		fill(list.Index(0), deep+1)
		v.Set(list)
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, deep+1)
		fill(value, deep+1)
		m.SetMapIndex(key, value)
		v.Set(m)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), deep)
			}
		}
	default:
		panic("the test cannot fill a " + v.Kind().String() + " in " + v.Type().String() + " " + strconv.Itoa(deep))
	}
}
