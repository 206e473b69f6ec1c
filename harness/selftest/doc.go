// Package selftest shows that the harness can fail: faulty daemons (package faultd) are run as any other, and each fault must be
// found by the claim that names it.
//
// The table [Plants] says for each fault in which scenario it is run, which claim has to be violated, and which others may be: what one
// cannot break alone. A fault is caught when its claim failed, no other claim failed than those, and the harness made no error. The honest daemon,
// wrapped as the faulty ones are and traced as some are, must break nothing: otherwise a fault would be caught by the wrapping.
//
// The scenarios are testdata's: small, and with claims that an honest daemon keeps. What was seen is written into falsified_by of the
// claims in scenarios/claims.
package selftest
