package api

import (
	"encoding/json"
	"testing"

	"github.com/mvmctl/mvm"
)

func TestUpdateRefuses(t *testing.T) {
	w := newWorld(t)
	m := w.open()
	w.stock(m)
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "web", NoAgent: true}); err != nil {
		t.Fatal(err)
	}
	minus, some, all := -1, 64, 1<<20
	before := w.state()
	for name, c := range map[string]struct {
		in   VMUpdateInput
		kind mvm.Kind
		says string
	}{
		"nothing":             {VMUpdateInput{}, mvm.ErrInvalid, "nothing"},
		"negative balloon":    {VMUpdateInput{BalloonMiB: &minus}, mvm.ErrInvalid, "-1 MiB"},
		"no balloon":          {VMUpdateInput{BalloonMiB: &some}, mvm.ErrConflict, "without a balloon"},
		"no metadata service": {VMUpdateInput{Metadata: json.RawMessage(`{}`)}, mvm.ErrConflict, "without a metadata service"},
		"metadata is a list":  {VMUpdateInput{Metadata: json.RawMessage(`[]`)}, mvm.ErrInvalid, "JSON object"},
		"metadata is null":    {VMUpdateInput{Metadata: json.RawMessage(`null`)}, mvm.ErrInvalid, "JSON object"},
		"negative limit":      {VMUpdateInput{DiskLimit: &mvm.VMLimit{BytesPerSec: -1}}, mvm.ErrInvalid, "limits nothing"},
		"burst of no limit":   {VMUpdateInput{NetLimit: &mvm.VMLimit{BurstBytes: 1}}, mvm.ErrInvalid, "limits nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			c.in.Identifiers = []string{"web"}
			_, err := m.VM.Update(t.Context(), c.in)
			refused(t, err, c.kind, c.says)
		})
	}
	if after := w.state(); len(after) != len(before) {
		t.Errorf("something changed: %v, %v", before, after)
	}
	if _, err := m.VM.Create(t.Context(), VMCreateInput{Name: "big", NoAgent: true, Balloon: &mvm.VMBalloon{MiB: all}}); err == nil {
		t.Error("a balloon larger than the memory is taken")
	}
}
