// Writes crates/api/src/schema/facts.txt: what every field of the served kinds is, without any of upstream's prose.
//
// Two sources: the Go types of the release (JSON names, protobuf numbers, pointers, inlining, patch tags) by reflection,
// and the published JSON schemas of the same release (required fields, list and map types) from _definitions.json, as the
// PyPI wheel kubernetes-validate carries it. Run once a release:
//
//	go run . path/to/v1.33.0-local/_definitions.json > ../../crates/api/src/schema/facts.txt
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"

	crd "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
)

var served = map[string]bool{
	"v1": true, "apps/v1": true, "batch/v1": true, "autoscaling/v1": true, "autoscaling/v2": true,
	"networking.k8s.io/v1": true, "discovery.k8s.io/v1": true, "rbac.authorization.k8s.io/v1": true,
	"coordination.k8s.io/v1": true, "node.k8s.io/v1": true, "policy/v1": true, "scheduling.k8s.io/v1": true,
	"storage.k8s.io/v1": true, "events.k8s.io/v1": true, "authentication.k8s.io/v1": true,
	"authorization.k8s.io/v1": true, "apiextensions.k8s.io/v1": true, "certificates.k8s.io/v1": true,
	"admissionregistration.k8s.io/v1": true,
}

// Types whose JSON is not what their Go fields say.
var special = map[reflect.Type]string{
	reflect.TypeOf(resource.Quantity{}):                "quantity",
	reflect.TypeOf(meta.Time{}):                        "time",
	reflect.TypeOf(meta.MicroTime{}):                   "micro-time",
	reflect.TypeOf(meta.Duration{}):                    "duration",
	reflect.TypeOf(intstr.IntOrString{}):               "int-or-string",
	reflect.TypeOf(runtime.RawExtension{}):             "raw",
	reflect.TypeOf(meta.FieldsV1{}):                    "raw",
	reflect.TypeOf(crd.JSON{}):                         "any",
	reflect.TypeOf(crd.JSONSchemaPropsOrBool{}):        "any",
	reflect.TypeOf(crd.JSONSchemaPropsOrArray{}):       "any",
	reflect.TypeOf(crd.JSONSchemaPropsOrStringArray{}): "any",
}

// Defaults by which keyed lists find their items; the only ones that a merge has to know.
var defaults = map[string]string{
	"core.v1.ContainerPort.protocol": `"TCP"`,
	"core.v1.ServicePort.protocol":   `"TCP"`,
}

type definition struct {
	Required   []string                   `json:"required"`
	Properties map[string]json.RawMessage `json:"properties"`
	MapType    string                     `json:"x-kubernetes-map-type"`
}

type property struct {
	ListType string   `json:"x-kubernetes-list-type"`
	ListKeys []string `json:"x-kubernetes-list-map-keys"`
	MapType  string   `json:"x-kubernetes-map-type"`
	MergeKey string   `json:"x-kubernetes-patch-merge-key"`
	Strategy string   `json:"x-kubernetes-patch-strategy"`
}

var definitions map[string]definition

// packageOf gives the short and the published name of a type's package.
func packageOf(t reflect.Type) (short, full string) {
	path := t.PkgPath()
	parts := strings.Split(path, "/")
	full = "io.k8s." + strings.Join(parts[1:], ".")
	short = strings.Join(parts[len(parts)-2:], ".")
	return short, full
}

func shortName(t reflect.Type) string { s, _ := packageOf(t); return s + "." + t.Name() }

type printer struct {
	types    map[string]reflect.Type
	queue    []reflect.Type
	packages map[string]string
}

func (p *printer) enqueue(t reflect.Type) {
	name := shortName(t)
	if old, ok := p.types[name]; ok {
		if old != t {
			panic("two types named " + name)
		}
		return
	}
	p.types[name] = t
	short, full := packageOf(t)
	p.packages[short] = full
	p.queue = append(p.queue, t)
}

// code says what a type is: `[` a list, `<` a list that protobuf wraps in a message, `{` a map from strings, a name, or a
// scalar.
func (p *printer) code(t reflect.Type) string {
	if s, ok := special[t]; ok {
		return s
	}
	switch t.Kind() {
	case reflect.Pointer:
		return p.code(t.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int32, reflect.Int64:
		return t.Kind().String()
	case reflect.Float64:
		return "float"
	case reflect.Uint8:
		return "byte"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		if _, ok := reflect.New(t).Interface().(interface{ ProtoMessage() }); ok {
			return "<" + p.code(t.Elem())
		}
		return "[" + p.code(t.Elem())
	case reflect.Map:
		return "{" + p.code(t.Elem())
	case reflect.Struct:
		p.enqueue(t)
		return shortName(t)
	case reflect.Interface:
		return "any"
	}
	panic("unknown type " + t.String())
}

func protoNumber(tag reflect.StructTag) string {
	parts := strings.Split(tag.Get("protobuf"), ",")
	if len(parts) < 2 {
		return "0"
	}
	return parts[1]
}

func (p *printer) fields(t reflect.Type, owner string, def definition) {
	required := map[string]bool{}
	for _, r := range def.Required {
		required[r] = true
	}
	for i := 0; i < t.NumField(); i++ {
		f := t.Field(i)
		json_ := strings.Split(f.Tag.Get("json"), ",")
		name := json_[0]
		if name == "-" {
			continue
		}
		if name == "" && f.Anonymous {
			// An inlined struct: its fields are the owner's in JSON and a message of their own in protobuf.
			fmt.Printf(" ~ %s %s\n", protoNumber(f.Tag), p.code(f.Type))
			continue
		}
		if name == "" {
			panic(owner + "." + f.Name + " has no JSON name")
		}
		var q property
		if raw, ok := def.Properties[name]; ok {
			_ = json.Unmarshal(raw, &q)
		}
		line := fmt.Sprintf(" %s %s %s", name, protoNumber(f.Tag), p.code(f.Type))
		omits := false
		for _, o := range json_[1:] {
			omits = omits || o == "omitempty" || o == "omitzero"
		}
		if f.Type.Kind() == reflect.Pointer {
			line += " ptr"
		}
		if required[name] {
			line += " required"
		}
		if !omits {
			line += " keep"
		}
		if q.ListType != "" {
			line += " list=" + q.ListType
		}
		if len(q.ListKeys) > 0 {
			line += " keys=" + strings.Join(q.ListKeys, ",")
		}
		if q.MapType == "atomic" {
			line += " atomic"
		}
		// The tags are what a strategic merge patch goes by; the schemas repeat them.
		if s := f.Tag.Get("patchStrategy"); s != "" {
			line += " strategy=" + s
		}
		if k := f.Tag.Get("patchMergeKey"); k != "" {
			line += " merge=" + k
		}
		if d := defaults[owner+"."+name]; d != "" {
			line += " default=" + d
		}
		fmt.Println(line)
	}
}

func main() {
	raw, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	var file struct {
		Defs map[string]definition `json:"$defs"`
	}
	// `type` may be a list there; only the members named above are read.
	if err := json.Unmarshal(raw, &file); err != nil {
		panic(err)
	}
	definitions = file.Defs
	if err := crd.AddToScheme(scheme.Scheme); err != nil {
		panic(err)
	}
	p := &printer{types: map[string]reflect.Type{}, packages: map[string]string{}}
	kinds := map[string][]string{}
	metaPackage := reflect.TypeOf(meta.Status{}).PkgPath()
	add := func(gvk schema.GroupVersionKind, t reflect.Type) {
		p.enqueue(t)
		name := shortName(t)
		kinds[name] = append(kinds[name], gvk.GroupVersion().String()+"/"+gvk.Kind)
	}
	known := scheme.Scheme.AllKnownTypes()
	all := make([]schema.GroupVersionKind, 0, len(known))
	for gvk := range known {
		all = append(all, gvk)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].String() < all[j].String() })
	for _, gvk := range all {
		t := known[gvk]
		if served[gvk.GroupVersion().String()] && t.PkgPath() != metaPackage {
			add(gvk, t)
		}
	}
	for _, o := range []any{meta.Status{}, meta.DeleteOptions{}, meta.CreateOptions{}, meta.UpdateOptions{}, meta.PatchOptions{},
		meta.ListOptions{}, meta.GetOptions{}, meta.WatchEvent{}, meta.APIGroup{}, meta.APIGroupList{}, meta.APIResourceList{},
		meta.APIVersions{}} {
		t := reflect.TypeOf(o)
		add(schema.GroupVersionKind{Version: "v1", Kind: t.Name()}, t)
	}
	for _, o := range []any{meta.PartialObjectMetadata{}, meta.PartialObjectMetadataList{}} {
		t := reflect.TypeOf(o)
		add(schema.GroupVersionKind{Group: "meta.k8s.io", Version: "v1", Kind: t.Name()}, t)
	}
	fmt.Println("# Facts of Kubernetes v1.33: fields, types, protobuf numbers. Written by `go run .` in xtask/facts; do not edit.")
	fmt.Println("# `type NAME [kind=group/version/Kind] [atomic]`, then a line a field: name, protobuf number, type, marks.")
	fmt.Println("# Types: `[` list, `<` list in a message of its own, `{` map from strings. `~` is an inlined struct.")
	for len(p.queue) > 0 {
		t := p.queue[0]
		p.queue = p.queue[1:]
		_, full := packageOf(t)
		def := definitions[full+"."+t.Name()]
		line := "type " + shortName(t)
		for _, k := range kinds[shortName(t)] {
			line += " kind=" + k
		}
		if def.MapType == "atomic" {
			line += " atomic"
		}
		fmt.Println(line)
		p.fields(t, shortName(t), def)
	}
	names := make([]string, 0, len(p.packages))
	for short := range p.packages {
		names = append(names, short)
	}
	sort.Strings(names)
	for _, short := range names {
		fmt.Printf("package %s %s\n", short, p.packages[short])
	}
}
