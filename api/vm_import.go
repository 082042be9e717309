package api

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/mvmctl/mvm"
)

// VMExportSchema is the JSON Schema of mvm.VMExportConfig.
//
//go:embed vm_export_schema.json
var VMExportSchema []byte

// VMImportInput says what VM is made of a description.
type VMImportInput struct {
	Path      string              // of the description, YAML or JSON; "-" is stdin
	Config    *mvm.VMExportConfig // in place of Path
	Name      string              // of the VM; "" takes the description's
	Wait      WaitFor
	WaitLimit time.Duration
}

// VMImportResult is the VM that was made.
type VMImportResult struct {
	VM       *mvm.VMInstanceItem `json:"vm"`
	Warnings []string            `json:"warnings"` // what differs from the description
}

// maxDescription is more than any description needs.
const maxDescription = 1 << 20

// Import makes a VM of a description. What it names is looked for on this host: all
// that is missing is told at once, with the commands that get it. An address that
// another VM has is replaced by a free one, with a warning.
func (o *VMOperation) Import(ctx context.Context, in VMImportInput, opts ...Option) (*VMImportResult, error) {
	res, err := o.importVM(ctx, in, opts)
	return res, mvm.Wrap(err, "import VM", firstOf(in.Name, in.Path))
}

func (o *VMOperation) importVM(ctx context.Context, in VMImportInput, opts []Option) (*VMImportResult, error) {
	cfg := in.Config
	var err error
	if cfg == nil {
		if cfg, err = readDescription(in.Path); err != nil {
			return nil, err
		}
	}
	c := o.core
	st, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	inv, err := loadInventory(ctx, st)
	if err != nil {
		return nil, err
	}
	r := importing{c: c, inv: inv, cfg: cfg, res: &VMImportResult{Warnings: []string{}}}
	create, err := r.resolve(ctx)
	if err != nil {
		return nil, err
	}
	create.Name, create.Wait, create.WaitLimit = firstOf(in.Name, cfg.Name), in.Wait, in.WaitLimit
	made, err := o.Create(ctx, create, opts...)
	if made != nil && len(made.VMs) > 0 {
		r.res.VM = made.VMs[0]
		return r.res, err
	}
	return nil, err
}

// readDescription reads and validates a description.
func readDescription(path string) (*mvm.VMExportConfig, error) {
	if path == "" {
		return nil, mvm.Errorf(mvm.ErrInvalid, "no description was named").WithHint("name a file that 'mvm vm export' wrote")
	}
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, mvm.Errorf(mvm.ErrNotFound, "%w", err).WithHint("name a file that 'mvm vm export' wrote")
		}
		defer func() { _ = f.Close() }()
	}
	data, err := io.ReadAll(io.LimitReader(f, maxDescription+1))
	switch {
	case err != nil:
		return nil, mvm.Errorf(mvm.ErrUnavailable, "%w", err)
	case len(data) > maxDescription:
		return nil, mvm.Errorf(mvm.ErrInvalid, "it has more than %d bytes", maxDescription).WithHint("name a file that 'mvm vm export' wrote")
	}
	return ParseVMExport(data)
}

// ParseVMExport reads a description in YAML or JSON and validates it by its schema.
func ParseVMExport(data []byte) (*mvm.VMExportConfig, error) {
	const hint = "'mvm vm export' shows what one looks like; its JSON Schema is docs/vm-export-1.0.schema.json"
	var doc any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "it is neither YAML nor JSON: %s", oneLine(err)).WithHint(hint)
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "it is no description of a VM: %s", oneLine(err)).WithHint(hint)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "it is no description of a VM: %s", oneLine(err)).WithHint(hint)
	}
	schema, err := exportSchema()
	if err != nil {
		return nil, err
	}
	if err := schema.Validate(value); err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "it is no description of a VM: %s", schemaProblem(err)).WithHint(hint)
	}
	cfg := &mvm.VMExportConfig{}
	if err := json.Unmarshal(text, cfg); err != nil {
		return nil, mvm.Errorf(mvm.ErrInvalid, "it is no description of a VM: %s", oneLine(err)).WithHint(hint)
	}
	return cfg, nil
}

var exportSchema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(VMExportSchema))
	if err != nil {
		return nil, err
	}
	const name = "vm-export-1.0.schema.json"
	c := jsonschema.NewCompiler()
	if err := c.AddResource(name, doc); err != nil {
		return nil, err
	}
	return c.Compile(name)
})

// schemaProblem words the first thing that a schema found wrong, with its place.
func schemaProblem(err error) string {
	var v *jsonschema.ValidationError
	if !errors.As(err, &v) {
		return oneLine(err)
	}
	for len(v.Causes) > 0 {
		v = v.Causes[0]
	}
	what := v.ErrorKind.LocalizedString(message.NewPrinter(language.English))
	if len(v.InstanceLocation) == 0 {
		return what
	}
	return strings.Join(v.InstanceLocation, ".") + ": " + what
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
