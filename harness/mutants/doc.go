// Package mutants measures whether unit tests see small faults: it changes one operator, condition,
// result or statement of a package at a time, and runs the tests, of which one must fail.
//
// The operators are the usual ones, with the names that gremlins gives them. Gremlins itself
// (v0.6.0) compiles, links and runs a whole package for each mutant, which takes some two seconds
// where the tests take twenty milliseconds, cannot go on where it was ended, removes no statements,
// and runs a mutated daemon as root on the machine as it is. Here all mutants of a package are
// compiled into one test program ([Schema]), which reads from its environment which of them is on.
// Only tests that reach a mutant are run for it, the quickest first. A mutant that was killed
// counts only if the test that killed it passes right after, without the mutant, so that a test
// which fails now and then kills nothing.
//
// The program runs in namespaces of its own (mounts, processes), with everything but its temporary
// folder read-only: a mutant may well signal every process, or move mounts. That takes root, as do
// tests of these packages.
//
// What became of each mutant is kept in docs/evidence/mutants.json, one letter a mutant, for each
// function by the hash of its text. A run skips what it has known since: killed mutants of a
// function that did not change, and survivors where the tests did not change either. Mutants that
// change nothing anybody can see are listed in equivalent.toml, by text, with the reason; a test
// holds the list against the tree.
package mutants
