// Package scenario reads the descriptions of use cases that the matrix runs: who launches the daemon, with which options, on
// which host, with which guests; what is looked at, in which order; and what is expected of which claim.
//
// One scenario is one TOML file, scenarios/<id>.toml, complete in itself: there is no inheritance, no inclusion, no variable. An
// unknown key is an error that shows its line.
package scenario
