// Package archtest holds the tests that keep the tree in its shape: who may import whom, where unsafe may stand, which libraries
// the daemon may link, that every package tells its story, that every file is formatted.
//
// The tables in lattice_test.go are policy: do not change this data to fix a build.
package archtest
