package members

import (
	"reflect"
	"strings"
)

// Tagged lists an object's members by its fields' json tags, as encoding/json would. It is for the tests of types: their Members say the same, faster.
func Tagged(o Object) []Member { return tagged(reflect.ValueOf(o).Elem()) }

func tagged(v reflect.Value) (out []Member) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous && name == "" {
			out = append(out, tagged(v.Field(i))...)
			continue
		}
		out = append(out, Member{Name: name, Value: v.Field(i).Addr().Interface(), Empty: options == ""})
	}
	return out
}
