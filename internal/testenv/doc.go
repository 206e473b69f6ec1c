// Package testenv lets a test say what it needs of the machine.
//
// A test calls [Need] with words from one closed list ("root", "qemu", "userns", …). Each word has a probe, which tries the thing
// itself rather than looking for a file name, and a remedy. Where a need is not met the test is skipped and the skip names what is
// missing; where the word stands in MATRIX_MUST (a comma list, or "all") the same situation is a failure, so that a CI machine
// which quietly lost QEMU cannot turn green by skipping.
package testenv
