package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	yamlv3 "go.yaml.in/yaml/v3"

	"keymill/daemon"
)

// Every option comes from four places; what stands further left wins:
//
//	flag > KEYMILL_ environment variable > configuration file > default
//
// All four are driven by daemon.Options. The file is flat YAML with the flags'
// names as keys; a key it does not know is an error. The environment may hold
// names that are not ours, so there an unknown name is a warning.

// configEnv names the configuration file in the environment, as --config does.
const configEnv = daemon.EnvPrefix + "CONFIG"

// testEnvPrefix begins the names of variables that only tests read.
const testEnvPrefix = daemon.EnvPrefix + "TEST_"

// delimiter of koanf's nested keys. No option's name holds it: options are flat.
const delimiter = "."

// addFlags adds --config and the options in names, or all without names.
func addFlags(fs *pflag.FlagSet, names ...string) {
	fs.SortFlags = false
	fs.String("config", "", "read options from `FILE`: YAML, by the flags' names")
	def := daemon.DefaultConfig()
	for _, o := range daemon.Options {
		if len(names) > 0 && !slices.Contains(names, o.Name) {
			continue
		}
		switch v := o.Field(&def).(type) {
		case *string:
			fs.String(o.Name, *v, o.Usage)
		case *bool:
			fs.Bool(o.Name, *v, o.Usage)
		case *int:
			fs.Int(o.Name, *v, o.Usage)
		case *[]string:
			fs.StringSlice(o.Name, *v, o.Usage)
		}
	}
}

// loadConfig returns the effective configuration, not yet validated, and
// warnings for the operator. environ is in the form of os.Environ.
func loadConfig(fs *pflag.FlagSet, environ []string) (daemon.Config, []string, error) {
	fail := func(err error) (daemon.Config, []string, error) { return daemon.Config{}, nil, err }

	conf := daemon.DefaultConfig()
	known := map[string]*daemon.Option{}
	byEnv := map[string]*daemon.Option{}
	defaults := map[string]any{}
	for i := range daemon.Options {
		o := &daemon.Options[i]
		known[o.Name], byEnv[o.Env()] = o, o
		switch v := o.Field(&conf).(type) {
		case *string:
			defaults[o.Name] = *v
		case *bool:
			defaults[o.Name] = *v
		case *int:
			defaults[o.Name] = *v
		case *[]string:
			defaults[o.Name] = *v
		}
	}
	k := koanf.New(delimiter)
	if err := k.Load(confmap.Provider(defaults, ""), nil); err != nil {
		return fail(err)
	}

	path, err := fs.GetString("config")
	if err != nil {
		return fail(err)
	}
	if path == "" {
		path = lookupEnv(environ, configEnv)
	}
	if path != "" {
		if err := loadFile(k, path, known); err != nil {
			return fail(fmt.Errorf("configuration file %s: %w", path, err))
		}
	}

	warnings, err := loadEnv(k, environ, byEnv)
	if err != nil {
		return fail(err)
	}

	err = k.Load(posflag.ProviderWithFlag(fs, "", k, func(f *pflag.Flag) (string, any) {
		if known[f.Name] == nil {
			return "", nil // --config, --print-config and the like
		}
		return f.Name, posflag.FlagVal(fs, f)
	}), nil)
	if err != nil {
		return fail(err)
	}

	for _, o := range daemon.Options {
		if err := set(o.Field(&conf), k.Get(o.Name)); err != nil {
			return fail(fmt.Errorf("%s: %w", o.Name, err))
		}
	}
	return conf, warnings, nil
}

// loadFile merges the file into k after every key and type in it was checked.
func loadFile(k *koanf.Koanf, path string, known map[string]*daemon.Option) error {
	in := koanf.New(delimiter)
	if err := in.Load(file.Provider(path), yaml.Parser()); err != nil {
		return err
	}
	raw := in.Raw()
	names := make([]string, 0, len(raw))
	for name := range raw {
		names = append(names, name)
	}
	slices.Sort(names)
	var errs []error
	for _, name := range names {
		o := known[name]
		if o == nil {
			errs = append(errs, fmt.Errorf("unknown key %q; keymill serve --print-config shows all keys", name))
			continue
		}
		var scratch daemon.Config
		if err := set(o.Field(&scratch), raw[name]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return k.Load(confmap.Provider(raw, ""), nil)
}

// loadEnv merges the KEYMILL_ variables into k. An empty variable is taken for
// an absent one, as shells and service files make it easy to set one by accident.
func loadEnv(k *koanf.Koanf, environ []string, byEnv map[string]*daemon.Option) (warnings []string, err error) {
	var errs []error
	err = k.Load(env.Provider("", env.Opt{
		Prefix:      daemon.EnvPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			o := byEnv[name]
			switch {
			case o != nil && value != "":
				v, err := parse(o, value)
				if err != nil {
					errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
				}
				return o.Name, v
			case o != nil, name == configEnv, name == daemon.EnvRootAccessKeyID, name == daemon.EnvRootSecretAccessKey,
				strings.HasPrefix(name, testEnvPrefix):
			default:
				warnings = append(warnings, fmt.Sprintf("environment variable %s is unknown and was ignored", name))
			}
			return "", nil
		},
	}), nil)
	return warnings, errors.Join(err, errors.Join(errs...))
}

// parse turns a variable's text into the value its option takes.
func parse(o *daemon.Option, text string) (any, error) {
	var scratch daemon.Config
	switch o.Field(&scratch).(type) {
	case *bool:
		switch strings.ToLower(text) {
		case "true", "1", "yes":
			return true, nil
		case "false", "0", "no":
			return false, nil
		}
		return nil, fmt.Errorf("%q is neither true nor false", text)
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%q is no whole number", text)
		}
		return n, nil
	case *[]string:
		return splitList(text), nil
	}
	return text, nil
}

// set stores a value of a YAML document or of koanf in a Config's field.
func set(field, value any) error {
	switch f := field.(type) {
	case *string:
		if v, ok := value.(string); ok {
			*f = v
			return nil
		}
		return fmt.Errorf("needs a text, not %s; put the value in quotes", kind(value))
	case *bool:
		if v, ok := value.(bool); ok {
			*f = v
			return nil
		}
		return fmt.Errorf("needs true or false, not %s", kind(value))
	case *int:
		if v, ok := value.(int); ok {
			*f = v
			return nil
		}
		return fmt.Errorf("needs a whole number, not %s", kind(value))
	case *[]string:
		switch v := value.(type) {
		case string:
			*f = splitList(v)
			return nil
		case []string:
			*f = v
			return nil
		case []any:
			list := make([]string, len(v))
			for i := range v {
				text, ok := v[i].(string)
				if !ok {
					return fmt.Errorf("needs a list of texts, entry %d is %s", i+1, kind(v[i]))
				}
				list[i] = text
			}
			*f = list
			return nil
		}
		return fmt.Errorf("needs a list, not %s", kind(value))
	}
	return fmt.Errorf("no option takes a %T", field)
}

// kind names a YAML value's type in words.
func kind(v any) string {
	switch v.(type) {
	case nil:
		return "nothing"
	case string:
		return "a text"
	case bool:
		return "a truth value"
	case int, int64, uint64, float64:
		return "a number"
	case []any:
		return "a list"
	case map[string]any:
		return "a mapping"
	}
	return fmt.Sprintf("a %T", v)
}

// splitList reads a list of names separated by commas.
func splitList(s string) []string {
	var list []string
	for _, item := range strings.Split(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

func lookupEnv(environ []string, name string) string {
	for _, e := range environ {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// printConfig writes the effective values as a configuration file that gives the
// same ones again.
func printConfig(w io.Writer, conf daemon.Config) error {
	for _, o := range daemon.Options {
		var value any
		switch v := o.Field(&conf).(type) {
		case *string:
			value = *v
		case *bool:
			value = *v
		case *int:
			value = *v
		case *[]string:
			value = append([]string{}, *v...)
		}
		line, err := yamlv3.Marshal(map[string]any{o.Name: value})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "# %s\n%s", strings.ReplaceAll(o.Usage, "`", ""), line); err != nil {
			return err
		}
	}
	return nil
}

// configFrom loads the configuration of a command that needs a part of it, and
// says on standard error what was odd about it.
func configFrom(fs *pflag.FlagSet) (daemon.Config, error) {
	conf, warnings, err := loadConfig(fs, os.Environ())
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "keymill: warning:", w)
	}
	return conf, err
}
