// Package mutate proves that tests see defences: it takes a defence out of the source, one at a time, and runs the tests that are
// there for it, which must fail.
//
// The defences stand in defences/LAYER.toml, one file a layer of the daemon. An entry says what the defence is, and how it is taken
// out: a piece of text that occurs once in a file, and what stands in its place. It names the tests that must go red. The source tree
// is not touched: the go command reads the changed file through its -overlay flag, which programs that tests build inherit by GOFLAGS.
//
// Entries can name fuzz targets, too, which have to find by themselves that the defence is gone: `vfsmatrix prove --fuzz 10m` gives each
// ten minutes and says how long it took. defences/mistakes.toml holds mistakes that are there for that.
//
// `vfsmatrix prove` (make prove-defences) runs all tests. The package's own tests hold the entries against the tree, so that an entry
// whose text has moved is found by every `make test`.
package mutate
