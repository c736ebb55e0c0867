package house

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write CONFORMANCE.md anew")

// A rule is one line of rules.tsv.
type rule struct {
	id, section, title string
	kame               string // K only: what the old listener is judged to be, OK, DEV, BUG or LIM
	notShown           string // why no test of a listener can show it
}

// A family is the rules of one source. They are numbered from 1 without a gap.
type family struct {
	prefix, title, about string
	last                 int
}

var families = []family{
	{"V1-", "MLDv1: RFC 2710, RFC 3590", "", 38},
	{"V2-", "MLDv2: RFC 9777, RFC 4604, RFC 5790", "", 83},
	{"K", "The kame profile: KAME's mld6.c", "The old listener whose observable behaviour the kame profile keeps. It is judged OK, DEV " +
		"(deviates from a specification), BUG or LIM (a limit); what starts with \"kame:\" holds in that profile " +
		"only, everything else in every profile.\n\n", 85},
}

// collector gathers which declarations of the test files name rules, and which tests use these.
type collector struct {
	rules map[string][]string        // declaration → ids
	uses  map[string]map[string]bool // declaration → identifiers in it
	says  map[string]bool            // declaration → reads a field rule, so that a failure can name it
}

func newCollector() *collector {
	return &collector{rules: map[string][]string{}, uses: map[string]map[string]bool{}, says: map[string]bool{}}
}

// add reads one test file; folder is that of its package.
func (c *collector) add(folder string, f *ast.File) {
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			name := folder + "." + d.Name.Name
			if isTest(name) {
				c.rules[name] = append(c.rules[name], rulesOfName(d.Name.Name)...)
			}
			c.addDecl(name, d)
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok {
					for _, ident := range v.Names {
						c.addDecl(folder+"."+ident.Name, v)
					}
				}
			}
		}
	}
}

func (c *collector) addDecl(name string, decl ast.Node) {
	uses, local := map[string]bool{}, map[string]bool{}
	define := func(exprs ...ast.Expr) {
		for _, e := range exprs {
			if ident, ok := e.(*ast.Ident); ok {
				local[ident.Name] = true
			}
		}
	}
	var visit func(ast.Node) bool
	visit = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			uses[n.Name] = true
		case *ast.SelectorExpr: // what is behind the dot is no declaration of this package
			if n.Sel.Name == "rule" || n.Sel.Name == "rules" {
				c.says[name] = true
			}
			ast.Inspect(n.X, visit)
			return false
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && (key.Name == "rule" || key.Name == "rules") {
				c.rules[name] = append(c.rules[name], rulesOfStrings(n.Value)...)
			}
			ast.Inspect(n.Value, visit)
			return false
		case *ast.CompositeLit:
			c.rules[name] = append(c.rules[name], rulesOfRows(n)...)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				define(n.Lhs...)
			}
		case *ast.RangeStmt:
			if n.Tok == token.DEFINE {
				define(n.Key, n.Value)
			}
		case *ast.Field:
			for _, ident := range n.Names {
				local[ident.Name] = true
			}
		}
		return true
	}
	ast.Inspect(decl, visit)
	maps.DeleteFunc(uses, func(used string, _ bool) bool { return local[used] })
	c.uses[name] = uses
}

// tests returns for each rule the tests that name it: in their own name or table, or in a table they use,
// if they say its rules. (A fuzz target that takes its seeds from a table proves none of them.)
func (c *collector) tests() map[string][]string {
	tests := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(c.uses)) {
		if !isTest(name) {
			continue
		}
		var ids []string
		says := false
		for decl := range c.reach(name, map[string]bool{}) {
			ids = append(ids, c.rules[decl]...)
			says = says || c.says[decl]
		}
		if !says {
			ids = slices.Clone(c.rules[name])
		}
		slices.Sort(ids)
		for _, id := range slices.Compact(ids) {
			tests[id] = append(tests[id], name)
		}
	}
	return tests
}

// reach adds a declaration to seen, and all tables and functions it uses, but no other tests.
func (c *collector) reach(name string, seen map[string]bool) map[string]bool {
	seen[name] = true
	folder := strings.TrimSuffix(name, path.Ext(name))
	for used := range c.uses[name] {
		next := folder + "." + used
		if c.uses[next] != nil && !seen[next] && !isTest(next) {
			c.reach(next, seen)
		}
	}
	return seen
}

// isTest says whether the name folder.Name is that of a test or a fuzz target.
func isTest(name string) bool {
	base := strings.TrimPrefix(path.Ext(name), ".")
	return strings.HasPrefix(base, "Test") || strings.HasPrefix(base, "Fuzz")
}

var (
	numberWord = regexp.MustCompile(`^0*([1-9][0-9]*)(?:[A-Z].*)?$`)
	idWord     = regexp.MustCompile(`^(K|V[0-9]+-)0*([0-9]+)$`)
)

// rulesOfName returns the rules in the name of a test: TestV1_13_V1_14_Query, TestK45, TestV2_07_Length.
func rulesOfName(name string) []string {
	words := strings.Split(strings.TrimPrefix(strings.TrimPrefix(name, "Test"), "Fuzz"), "_")
	var ids []string
	for i, word := range words {
		prefix, number := "", ""
		if (word == "V1" || word == "V2") && i+1 < len(words) {
			prefix, number = word+"-", words[i+1]
		} else if rest, ok := strings.CutPrefix(word, "K"); ok {
			prefix, number = "K", rest
		}
		if m := numberWord.FindStringSubmatch(number); m != nil {
			ids = append(ids, prefix+m[1])
		}
	}
	return ids
}

// rulesOfStrings returns the rules listed in the string literals of an expression. Ids of other families
// (a bridge's, the kernel's) are not collected; what merely looks like one of ours is, and found out later.
func rulesOfStrings(expr ast.Expr) []string {
	var ids []string
	ast.Inspect(expr, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		text, err := strconv.Unquote(lit.Value)
		if err != nil {
			return true
		}
		for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
			if m := idWord.FindStringSubmatch(strings.ReplaceAll(word, "_", "-")); m != nil {
				ids = append(ids, m[1]+m[2])
			}
		}
		return true
	})
	return ids
}

// rulesOfRows returns the rules of a literal table of an unnamed struct type whose rows leave out the
// names of their fields.
func rulesOfRows(table *ast.CompositeLit) []string {
	var element ast.Expr
	switch t := table.Type.(type) {
	case *ast.ArrayType:
		element = t.Elt
	case *ast.MapType:
		element = t.Value
	}
	row, ok := element.(*ast.StructType)
	if !ok {
		return nil
	}
	column, at := -1, 0
	for _, field := range row.Fields.List {
		for _, name := range field.Names {
			if name.Name == "rule" || name.Name == "rules" {
				column = at
			}
			at++
		}
	}
	if column < 0 {
		return nil
	}
	var ids []string
	for _, elt := range table.Elts {
		if kv, ok := elt.(*ast.KeyValueExpr); ok {
			elt = kv.Value
		}
		if lit, ok := elt.(*ast.CompositeLit); ok && column < len(lit.Elts) {
			if _, named := lit.Elts[column].(*ast.KeyValueExpr); !named {
				ids = append(ids, rulesOfStrings(lit.Elts[column])...)
			}
		}
	}
	return ids
}

// readRules reads rules.tsv and insists that it is complete and in order.
func readRules(t *testing.T) []rule {
	t.Helper()
	data, err := os.ReadFile("rules.tsv")
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]rule{}
	for n, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 5 || f[0] == "" || f[1] == "" || f[2] == "" || strings.Contains(line, "|") {
			t.Fatalf("rules.tsv:%d: want rule, section, title, kame, reason, separated by tabs and without %q", n+1, "|")
		}
		if _, twice := byID[f[0]]; twice {
			t.Fatalf("rules.tsv:%d: %s is there already", n+1, f[0])
		}
		byID[f[0]] = rule{f[0], f[1], f[2], f[3], f[4]}
	}
	delete(byID, "rule") // the head line
	var rules []rule
	for _, fam := range families {
		for n := range fam.last {
			id := fam.prefix + strconv.Itoa(n+1)
			if r, ok := byID[id]; ok {
				rules = append(rules, r)
				delete(byID, id)
			} else {
				t.Errorf("rules.tsv: %s is missing", id)
			}
		}
	}
	for id := range byID {
		t.Errorf("rules.tsv: there is no rule %s", id)
	}
	return rules
}

// document writes CONFORMANCE.md.
func document(rules []rule, tests map[string][]string) []byte {
	var head, body bytes.Buffer
	head.WriteString("# Conformance\n\n" +
		"Written by `make conformance` from e2e/house/rules.tsv and from the names and tables of the tests: do not edit.\n" +
		"A rule is *proved* if a test carries its number (whether that test passes, `make test` says), *not shown* if no test\n" +
		"of a listener can show it, for the reason given, and else *open*.\n\n" +
		"| family | rules | proved | not shown | open |\n|---|---:|---:|---:|---:|\n")
	for _, fam := range families {
		fmt.Fprintf(&body, "\n## %s\n\n%s| rule | section | what must hold | verdict | tests |\n|---|---|---|---|---|\n",
			fam.title, fam.about)
		var total, proved, notShown, open int
		for _, r := range rules {
			if !strings.HasPrefix(r.id, fam.prefix) {
				continue
			}
			total++
			verdict, how := "", ""
			switch {
			case len(tests[r.id]) > 0:
				proved++
				verdict, how = "proved", strings.Join(tests[r.id], ", ")
			case r.notShown != "":
				notShown++
				verdict, how = "not shown", r.notShown
			default:
				open++
				verdict = "**open**"
			}
			if r.kame != "" {
				verdict = r.kame + ", " + verdict
			}
			fmt.Fprintf(&body, "| %s | %s | %s | %s | %s |\n", r.id, r.section, r.title, verdict, how)
		}
		fmt.Fprintf(&head, "| %s | %d | %d | %d | %d |\n", fam.title, total, proved, notShown, open)
	}
	return append(head.Bytes(), body.Bytes()...)
}

func TestConformance(t *testing.T) {
	rules := readRules(t)
	c := newCollector()
	walkGo(t, func(file string, f *ast.File, _ *token.FileSet) {
		if strings.HasSuffix(file, "_test.go") {
			c.add(path.Dir(file), f)
		}
	})
	tests := c.tests()
	known := map[string]bool{}
	for _, r := range rules {
		known[r.id] = true
		if r.notShown != "" && len(tests[r.id]) > 0 {
			t.Errorf("rules.tsv: %s says why no test shows it, but %s does: take the reason out", r.id, tests[r.id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(tests)) {
		if !known[id] {
			t.Errorf("%s names rule %s, which rules.tsv does not have", tests[id], id)
		}
	}
	if t.Failed() {
		return
	}
	file := filepath.Join(root, "CONFORMANCE.md")
	want := document(rules, tests)
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(got), "\n"), strings.Split(string(want), "\n")); diff != "" {
		t.Errorf("CONFORMANCE.md is out of date, run make conformance (-is +should be):\n%s", diff)
	}
}

func TestCollector(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "x_test.go", `package x
var table = []step{{rule: "V1-14, K37"}, {rule: "B16"}}
func rows() []row { return []row{{rules: []string{"V2_7", "V2-8"}}} }
func TestV1_13_V1_09_Query(t *testing.T) { run(table) }
func run(steps []step) { t.Run(steps[0].rule) }
func FuzzQuery(f *testing.F) { f.Add(table) }
func TestK45(t *testing.T)               { for _, r := range rows() { t.Log(r.rules) } }
func TestV2_07Length(t *testing.T)       {}
func TestRows(t *testing.T) {
	for _, c := range []struct{ name, rule string }{{"a", "K99"}, {name: "b", rule: "V3-1"}} {}
}
func TestKeep2_Version1(t *testing.T) {}
func TestShadow(t *testing.T) { table := 1; t.rows(table, step{table: 1}) }
func helperK50() {}
`, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	c := newCollector()
	c.add("a/x", f)
	want := map[string][]string{
		"V1-9":  {"a/x.TestV1_13_V1_09_Query"},
		"V1-13": {"a/x.TestV1_13_V1_09_Query"},
		"V1-14": {"a/x.TestV1_13_V1_09_Query"},
		"K37":   {"a/x.TestV1_13_V1_09_Query"},
		"K45":   {"a/x.TestK45"},
		"V2-7":  {"a/x.TestK45", "a/x.TestV2_07Length"},
		"V2-8":  {"a/x.TestK45"},
		"K99":   {"a/x.TestRows"},
		"V3-1":  {"a/x.TestRows"},
	}
	if diff := cmp.Diff(want, c.tests()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
