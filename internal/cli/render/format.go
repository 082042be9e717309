package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"text/template"
	"unicode"
)

// Format is a Go template that results are printed by, once per item of a list.
// It sees the fields by their names in JSON (.ipv4) and by those of the Go type
// (.IPv4).
//
// See https://pkg.go.dev/text/template.
type Format struct{ t *template.Template }

// NewFormat reads a template.
func NewFormat(text string) (*Format, error) {
	// As docker has it: a tab and a line end may be written as \t and \n.
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("format").Option("missingkey=error").Funcs(template.FuncMap{
		"json":  toJSON,
		"join":  join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
	}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("it is no Go template: %s", strings.TrimPrefix(err.Error(), "template: "))
	}
	return &Format{t}, nil
}

// print writes v, or each element of it where it is a list, and a line end.
func (f *Format) print(v any) (string, error) {
	var b bytes.Buffer
	items := []any{generic(reflect.ValueOf(v))}
	if list, ok := items[0].([]any); ok {
		items = list
	}
	for _, item := range items {
		if err := f.t.Execute(&b, item); err != nil {
			return "", fmt.Errorf("%s%s", strings.TrimPrefix(err.Error(), "template: format:"), fieldsOf(item))
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// record is a struct or an object as a template sees it. Names that begin with
// an upper-case letter are of Go fields; JSON has none of them.
type record map[string]any

// MarshalJSON leaves out the names of Go fields.
func (r record) MarshalJSON() ([]byte, error) {
	out := make(map[string]any, len(r))
	for name, v := range r {
		if !isGoName(name) {
			out[name] = v
		}
	}
	return json.Marshal(out)
}

func isGoName(s string) bool { return s != "" && unicode.IsUpper(rune(s[0])) }

// fieldsOf says which fields there are.
func fieldsOf(v any) string {
	r, ok := v.(record)
	if !ok {
		return ""
	}
	names := make([]string, 0, len(r))
	for name := range r {
		if !isGoName(name) {
			names = append(names, name)
		}
	}
	return "; the fields are " + strings.Join(slices.Sorted(slices.Values(names)), ", ")
}

// generic turns structs into records, keeps what knows its own JSON as that has
// it, and follows pointers.
func generic(v reflect.Value) any {
	if !v.IsValid() {
		return nil
	}
	if m, ok := v.Interface().(json.Marshaler); ok {
		return viaJSON(m)
	}
	switch v.Kind() {
	case reflect.String:
		return Clean(v.String()) // what a guest may have chosen
	case reflect.Pointer, reflect.Interface:
		return generic(v.Elem())
	case reflect.Struct:
		r := record{}
		addFields(r, v)
		return r
	case reflect.Map:
		r := record{}
		for iter := v.MapRange(); iter.Next(); {
			r[fmt.Sprint(iter.Key())] = generic(iter.Value())
		}
		return r
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return viaJSON(v.Interface())
		}
		if v.Kind() == reflect.Slice && v.IsNil() {
			return []any(nil)
		}
		list := make([]any, v.Len())
		for i := range list {
			list[i] = generic(v.Index(i))
		}
		return list
	}
	return v.Interface()
}

func addFields(r record, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case !f.IsExported() || name == "-":
			continue
		case f.Anonymous && name == "":
			inner := v.Field(i)
			for inner.Kind() == reflect.Pointer && !inner.IsNil() {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				addFields(r, inner)
			}
			continue
		case name == "":
			name = f.Name
		}
		x := generic(v.Field(i))
		r[name], r[f.Name] = x, x
	}
}

// viaJSON is v as its JSON reads.
func viaJSON(v any) any {
	data, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	var out any
	if err := json.Unmarshal(data, &out); err != nil {
		return nil
	}
	return generic(reflect.ValueOf(out))
}

func toJSON(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func join(list []any, sep string) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, sep)
}
