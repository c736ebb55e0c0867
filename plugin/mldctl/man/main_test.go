package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/mldctl/command"
)

const root = "../../.."

// pages writes all pages and returns their texts, without the marks of roff.
func pages(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if err := write(root, dir); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(f)] = strings.NewReplacer(`\-`, "-", `\fB`, "", `\fP`, "", `\fR`, "").Replace(string(text))
	}
	return texts
}

// Every command has a page, with its flags, and every page has what a page must have.
func TestPagesAreComplete(t *testing.T) {
	texts := pages(t)
	want := func(page, text string) {
		t.Helper()
		if !strings.Contains(texts[page], text) {
			t.Errorf("%s does not say %q", page, text)
		}
	}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		page := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		want(page, c.Short)
		flags := func(f *pflag.Flag) {
			want(page, "--"+f.Name)
			if c.Name() != "help" && f.Usage == "" {
				t.Errorf("%s: flag %s is not explained", page, f.Name)
			}
		}
		c.NonInheritedFlags().VisitAll(flags)
		c.InheritedFlags().VisitAll(flags)
		if c.Long == "" || len(strings.Fields(c.Short)) < 3 {
			t.Errorf("%s: not explained", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
				visit(sub)
			}
		}
	}
	visit(command.New(""))
	for _, page := range []string{"mldctl.1", "mldctl-groups.1", "mldctl-completion-bash.1", "mldd.8", "mld.5"} {
		if _, ok := texts[page]; !ok {
			t.Errorf("no page %s", page)
		}
	}
	for page := range texts {
		want(page, ".SH NAME")
		want(page, ".SH DESCRIPTION")
	}
}

// The pages written by hand know every flag of mldd and every key of a configuration, as the README does.
func TestPagesByHand(t *testing.T) {
	texts := pages(t)
	source, err := os.ReadFile(filepath.Join(root, "plugin/mldd/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`flags\.\w+\((?:&\w+, )?"([a-z-]+)"`).FindAllSubmatch(source, -1)
	if len(flags) < 5 {
		t.Errorf("flags of mldd: %q", flags)
	}
	for _, f := range flags {
		if text := "--" + string(f[1]); !strings.Contains(texts["mldd.8"], text) {
			t.Errorf("mldd.8 does not have %s", text)
		}
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(readme), "### Configuration")
	table, _, _ = strings.Cut(table, "###")
	var keys []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(table, -1) {
		keys = append(keys, row[1])
	}
	for _, f := range reflect.VisibleFields(reflect.TypeOf(api.Settings{})) {
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !slices.Contains(keys, key) {
			t.Errorf("the README has no row of %s", key)
		}
	}
	for _, key := range keys {
		if !strings.Contains(texts["mld.5"], "\n"+key+"\n") {
			t.Errorf("mld.5 has no entry of %s", key)
		}
	}
}
