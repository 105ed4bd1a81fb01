"""Connections of callers, in whose own transaction a client writes (`tx=`): one small adapter for each driver."""
