// Package config is the daemon's command line: one table of flags, from which parsing, --help and the option reference are made, and
// the checks which need no look at the system. Names, grammar and defaults are those of the Rust virtiofsd 1.13/1.14, so that
// launchers need not change; the words of -o are those of the C virtiofsd. What only we have says so in its Since.
//
// The package is pure: it reads no files, no environment and no flags of its own accord.
package config
