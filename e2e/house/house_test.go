// Package house tests the repository itself: who imports whom, what the programs are made of, which
// folders there are, and which rules of the protocol the tests prove (CONFORMANCE.md).
package house

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/seed-aaab8e3a/cni-mld"
	root   = "../.."
)

// arrows says what each package may import of the others; what those may import is allowed too.
// End to end tests may import anything, and are not listed.
var arrows = map[string][]string{
	"mld":           {},
	"mld/listener":  {"mld"},
	"mld/netns":     {},
	"mld/link":      {"mld", "mld/netns"},
	"mld/kernel":    {"mld", "mld/netns"},
	"mld/bridge":    {"mld/netns"},
	"mld/agent":     {"mld/listener", "mld/link", "mld/kernel"},
	"mld/linktest":  {"mld"},
	"plugin":        {"plugin/api"},
	"plugin/api":    {"mld"},
	"plugin/daemon": {"mld/agent", "mld/bridge", "plugin/api"},
	"plugin/deploy": {},
	"plugin/mldctl": {"plugin/mldctl/command"},
	"plugin/keeper": {},
	"plugin/mldd":   {"plugin/daemon", "plugin/keeper"},

	"plugin/mldctl/command": {"plugin/api"},
	"plugin/mldctl/man":     {"plugin/mldctl/command"},

	"netnslab": {"mld/netns", "mld/bridge"},
}

// impure is what the wire formats and the state machine do without: they do no I/O, do not wait, do not
// log and know no clock. A path ending in a slash stands for all below it.
var impure = []string{"C", "context", "io/fs", "io/ioutil", "log", "log/", "net", "net/http", "net/rpc", "net/url", "os", "os/",
	"runtime", "sync", "sync/", "syscall", "testing", "unique", "golang.org/", "github.com/"}

// A goPackage is one package as go list tells it, without its tests.
type goPackage struct {
	ImportPath string
	Imports    []string
}

// list runs go list in the module's root.
func list(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("%v: %v", cmd, err)
		}
		packages = append(packages, p)
	}
}

// reachable returns what a package may import, over all arrows.
func reachable(folder string, seen map[string]bool) map[string]bool {
	for _, next := range arrows[folder] {
		if !seen[next] {
			seen[next] = true
			reachable(next, seen)
		}
	}
	return seen
}

// matches says whether an import path is in a list such as impure.
func matches(importPath string, list []string) bool {
	return slices.ContainsFunc(list, func(entry string) bool {
		return importPath == entry || strings.HasSuffix(entry, "/") && strings.HasPrefix(importPath, entry)
	})
}

func TestArrows(t *testing.T) {
	for _, p := range list(t, "./...") {
		folder := strings.TrimPrefix(p.ImportPath, module+"/")
		if folder == "e2e" || strings.HasPrefix(folder, "e2e/") {
			continue
		}
		if _, ok := arrows[folder]; !ok {
			t.Errorf("%s: a package nobody gave a place: say in arrows what it may import", folder)
			continue
		}
		allowed := reachable(folder, map[string]bool{})
		for _, imported := range p.Imports {
			if ours, ok := strings.CutPrefix(imported, module+"/"); ok && !allowed[ours] {
				t.Errorf("%s imports %s, but arrows allows it only %q", folder, ours, arrows[folder])
			}
			if (folder == "mld" || folder == "mld/listener") && !strings.HasPrefix(imported, module) &&
				matches(imported, impure) {
				t.Errorf("%s imports %s, but it is pure: no I/O, no lock, no log, no clock", folder, imported)
			}
		}
	}
}

// The plugin is started for every pod, and mldctl by hand and by each completion, so whatever is linked into them is paid
// for each time.
func TestPluginIsSmall(t *testing.T) {
	for _, program := range []string{"plugin", "plugin/mldctl"} {
		for _, p := range list(t, "-deps", "./"+program) {
			for _, heavy := range []string{"net/http", "netlink", "prometheus", "nftables", "md2man"} {
				if strings.Contains(p.ImportPath, heavy) {
					t.Errorf("%s links %s: leave that to others", program, p.ImportPath)
				}
			}
		}
	}
}

// Entering a namespace is for one package, and making one for the lab; tests of their own may do either.
func TestOnlyNetnsEnters(t *testing.T) {
	forbidden := []string{"Setns", "Unshare", "SYS_SETNS", "SYS_UNSHARE", "Cloneflags", "Unshareflags", "LockOSThread"}
	walkGo(t, func(file string, f *ast.File, fset *token.FileSet) {
		folder := path.Dir(file)
		if folder == "mld/netns" || folder == "netnslab" || strings.HasPrefix(folder, "e2e/") ||
			strings.HasSuffix(file, "_test.go") {
			return
		}
		for _, spec := range f.Imports {
			if spec.Path.Value == `"github.com/vishvananda/netns"` {
				t.Errorf("%s: imports vishvananda/netns: use mld/netns", fset.Position(spec.Pos()))
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(forbidden, sel.Sel.Name) {
				t.Errorf("%s: %s: use mld/netns.Namespace.Do", fset.Position(sel.Pos()), sel.Sel.Name)
			}
			if kv, ok := n.(*ast.KeyValueExpr); ok {
				if key, ok := kv.Key.(*ast.Ident); ok && (slices.Contains(forbidden, key.Name) || key.Name == "NetNS") {
					t.Errorf("%s: option %s: use mld/netns.Namespace.Do", fset.Position(key.Pos()), key.Name)
				}
			}
			return true
		})
	})
}

// What an error says is for people; what it is, errors.Is and errors.As tell.
func TestErrorsAreNotMatchedByText(t *testing.T) {
	isText := func(e ast.Expr) bool {
		call, ok := e.(*ast.CallExpr)
		if !ok || len(call.Args) > 0 {
			return false
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		return ok && sel.Sel.Name == "Error"
	}
	walkGo(t, func(file string, f *ast.File, fset *token.FileSet) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			var matched []ast.Expr
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if n.Op == token.EQL || n.Op == token.NEQ {
					matched = []ast.Expr{n.X, n.Y}
				}
			case *ast.SwitchStmt:
				matched = []ast.Expr{n.Tag}
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok {
					if pkg, ok := sel.X.(*ast.Ident); ok && (pkg.Name == "strings" || pkg.Name == "regexp") {
						matched = n.Args
					}
				}
			}
			if slices.ContainsFunc(matched, isText) {
				t.Errorf("%s: an error matched by its text: use errors.Is or errors.As", fset.Position(n.Pos()))
			}
			return true
		})
	})
}

func TestTopFolders(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"plugin", "mld", "netnslab", "e2e", "bin"} // bin is built, and not in git
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) {
			t.Errorf("folder %s: the top of the repository has %q and no other", e.Name(), allowed)
		}
	}
}

// walkGo parses every Go file of the module; file is its slash-separated path from the root.
func walkGo(t *testing.T, visit func(file string, f *ast.File, fset *token.FileSet)) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil && name != root {
				return fs.SkipDir // a benchmark beside a peer is a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(rel), f, fset)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every code and every mark has its place in the catalogue of errors, and nothing stands there that does not exist.
func TestErrorsAreCatalogued(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "plugin/ERRORS.md"))
	if err != nil {
		t.Fatal(err)
	}
	constants := make(map[string]string) // name to value
	for _, file := range []string{"plugin/api/codes.go", "plugin/api/stream.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
				if value, ok := v.Values[0].(*ast.BasicLit); ok {
					constants[v.Names[0].Name] = strings.Trim(value.Value, `"`)
				}
			}
			return true
		})
	}
	codes, marks := 0, 0
	for name, value := range constants {
		switch {
		case strings.HasPrefix(name, "Code"):
			codes++
			if !strings.Contains(string(page), "\n| "+value+" | ") {
				t.Errorf("plugin/ERRORS.md: no row for code %s (%s)", value, name)
			}
		case strings.HasPrefix(name, "Mark"):
			marks++
			if !strings.Contains(string(page), "`"+value+"`") {
				t.Errorf("plugin/ERRORS.md: no row for the mark %s (%s)", value, name)
			}
		}
	}
	if codes < 4 || marks < 15 {
		t.Errorf("%d codes and %d marks found: look at where they are declared", codes, marks)
	}
	// The texts are those of the programs: every piece of one between what is cut out and what stands for something else.
	var literals []string
	walkGo(t, func(file string, f *ast.File, _ *token.FileSet) {
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				literals = append(literals, l.Value)
			}
			return true
		})
	})
	texts := 0
	for _, row := range strings.Split(string(page), "\n") {
		cells := strings.Split(row, " | ")
		if len(cells) != 4 || cells[0] == "| code" { // the marks have three
			continue
		}
		for i, text := range strings.Split(cells[1], "`") {
			if i%2 == 0 {
				continue // between two texts
			}
			for _, piece := range pieces.Split(text, -1) {
				if piece = strings.TrimSpace(piece); len(piece) < 8 {
					continue
				}
				texts++
				if !slices.ContainsFunc(literals, func(l string) bool { return strings.Contains(l, piece) }) {
					t.Errorf("plugin/ERRORS.md: %q of %q is said nowhere", piece, text)
				}
			}
		}
	}
	if texts < 25 {
		t.Errorf("%d texts found: look at how the page's rows are read", texts)
	}
}

// pieces are what separates the pieces of a text in the catalogue.
var pieces = regexp.MustCompile(`…|"?\b(IF|PORT|BRIDGE|KEY|VALUE|N|M)\b"?|[":=]`)
