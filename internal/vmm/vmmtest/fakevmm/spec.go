package fakevmm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"go.yaml.in/yaml/v4"
)

// specName is Firecracker's OpenAPI description as the project keeps it among
// its reference documents, beside the repository.
const specName = "firecracker-v1.16.1.openapi2.yaml"

// SpecPath returns where the OpenAPI description lies: in $MVM_REFERENCE_DIR,
// or in shared/reference beside one of the directories above this one. It is ""
// where there is none.
func SpecPath() string {
	if dir := os.Getenv("MVM_REFERENCE_DIR"); dir != "" {
		return existing(filepath.Join(dir, specName))
	}
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if p := existing(filepath.Join(dir, "shared", "reference", specName)); p != "" {
			return p
		}
	}
	return ""
}

func existing(path string) string {
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// Spec is Firecracker's OpenAPI description, made stricter where Firecracker
// itself is: an object has no other fields than those listed (serde's
// deny_unknown_fields).
type Spec struct {
	doc    *openapi3.T
	router routers.Router
}

// LoadSpec reads an OpenAPI 2 description in YAML.
func LoadSpec(path string) (*Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return nil, err
	}
	keysAsText(&root) // status codes are numbers in YAML and no keys in JSON
	var generic any
	if err := root.Decode(&generic); err != nil {
		return nil, err
	}
	if data, err = json.Marshal(generic); err != nil {
		return nil, err
	}
	var v2 openapi2.T
	if err := json.Unmarshal(data, &v2); err != nil {
		return nil, err
	}
	v2.Host, v2.BasePath = "", "" // requests come on a unix socket
	v2.Consumes = []string{"application/json"}
	doc, err := openapi2conv.ToV3(&v2)
	if err != nil {
		return nil, err
	}
	doc.Servers = nil
	addUnplug(doc)
	closed := false
	for _, ref := range doc.Components.Schemas {
		if len(ref.Value.Properties) > 0 {
			ref.Value.AdditionalProperties = openapi3.AdditionalProperties{Has: &closed}
		}
	}
	router, err := legacy.NewRouter(doc, openapi3.DisableSchemaPatternValidation(), openapi3.DisableExamplesValidation())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Spec{doc: doc, router: router}, nil
}

// addUnplug adds what docs/device-hotplug.md of the same version documents, and its
// description forgot: devices are unplugged by DELETE.
func addUnplug(doc *openapi3.T) {
	for path, item := range doc.Paths.Map() {
		for _, kind := range []string{"/drives/", "/network-interfaces/", "/pmem/"} {
			if strings.HasPrefix(path, kind) && item.Put != nil {
				item.Delete = &openapi3.Operation{Parameters: item.Put.Parameters, Responses: item.Put.Responses}
			}
		}
	}
}

func keysAsText(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		for i := 0; i < len(n.Content); i += 2 {
			n.Content[i].Tag = "!!str"
		}
	}
	for _, c := range n.Content {
		keysAsText(c)
	}
}

// CheckRequest says why a request is not what the description allows; nil when
// it is.
func (s *Spec) CheckRequest(method, path string, body []byte) error {
	ctx := context.Background()
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	route, params, err := s.router.FindRoute(req)
	if err != nil {
		return fmt.Errorf("%w: %s %s", errNoOperation, method, path)
	}
	err = openapi3filter.ValidateRequest(ctx, &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route})
	if err != nil {
		return errors.New(brief(err))
	}
	return nil
}

var errNoOperation = errors.New("the description has no such operation")

// CheckConfig says why a configuration file is not what the description allows:
// FullVmConfiguration, and each section by its own definition.
func (s *Spec) CheckConfig(data []byte) error {
	return s.CheckAs("FullVmConfiguration", data)
}

// CheckAs validates JSON against a definition by name.
func (s *Spec) CheckAs(definition string, data []byte) error {
	ref := s.doc.Components.Schemas[definition]
	if ref == nil {
		return fmt.Errorf("the description has no definition %q", definition)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	if err := ref.Value.VisitJSON(v); err != nil {
		return errors.New(brief(err))
	}
	return nil
}

// Operations lists the description's operations as "METHOD /path".
func (s *Spec) Operations() []string {
	var ops []string
	for path, item := range s.doc.Paths.Map() {
		for method := range item.Operations() {
			ops = append(ops, method+" "+path)
		}
	}
	return ops
}

// brief shortens the library's errors, which quote the whole schema.
func brief(err error) string {
	var schema *openapi3.SchemaError
	if errors.As(err, &schema) {
		return strings.Join(schema.JSONPointer(), "/") + ": " + schema.Reason
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}
