package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// printed finds commands in pages: in code blocks and between backticks.
var printed = regexp.MustCompile("(?m)(?:^ {4}|`)(?:bin/)?vfsmatrix ([a-z][^`\\n#]*)")

// quick are sub-commands that change nothing and need no guest: they are run as they are printed.
var quick = map[string]bool{"list": true, "explain": true, "check": true, "cells": true, "help": true}

// words stand for what the reader fills in.
var words = strings.NewReplacer("<run>", "latest", "explain ID", "explain a-root", "RUN1", "runs/a", "RUN2", "runs/b")

func TestEveryPrintedCommandIsOne(t *testing.T) {
	root := "../.."
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "docs/*/*/*.md"} {
		some, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		pages = append(pages, some...)
	}
	found := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range printed.FindAllStringSubmatch(string(b), -1) {
			line := strings.TrimSpace(words.Replace(m[1]))
			args := strings.Fields(line)
			if last := len(args) - 1; args[last] != "." { // which is a directory
				args[last] = strings.TrimRight(args[last], ".,;:")
			}
			found++
			c, rest, err := (&app{}).command().Find(args)
			require.NoError(t, err, "%s: %s", page, line)
			require.True(t, c.HasParent(), "%s: there is no command %q", page, line)
			require.NoError(t, c.ParseFlags(rest), "%s: %s", page, line)
			if len(rest) == 0 && c.ValidateArgs(nil) != nil {
				continue // the command's name, and no more
			}
			require.NoError(t, c.ValidateArgs(c.Flags().Args()), "%s: %s", page, line)
			if quick[c.Name()] {
				top := (&app{}).command()
				top.SetArgs(append([]string{"--tree", root}, args...))
				top.SetOut(io.Discard)
				assert.NoError(t, top.Execute(), "%s: %s", page, line)
			}
		}
	}
	assert.Greater(t, found, 15, "the pages print commands")
}

func TestEveryPrintedTargetIsOne(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	require.NoError(t, err)
	for _, page := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/design.md", "docs/best-practices.md", "docs/generated/faults.md", "docs/generated/benchmarks.md"} {
		b, err := os.ReadFile(filepath.Join("../..", page))
		require.NoError(t, err)
		for _, m := range regexp.MustCompile("(?m)(?:^ {4}|`)make ([a-z-]+)").FindAllStringSubmatch(string(b), -1) {
			assert.Regexp(t, `(?m)^(\S+ )*`+regexp.QuoteMeta(m[1])+`( \S+)*:`, string(makefile), "%s: make %s", page, m[1])
		}
	}
}
