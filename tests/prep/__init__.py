"""Tests of the package `prep`."""
