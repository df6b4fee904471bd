# For act's pkg/runner/local_repository_cache.go: jobs that run at the same time write one map without a lock, and act dies.
s|^import (|import (\n\t"sync"|
s|^type LocalRepositoryCache struct|var cacheDirLock sync.Mutex\n\nfunc (l *LocalRepositoryCache) remember(key, dest string) {\n\tcacheDirLock.Lock()\n\tdefer cacheDirLock.Unlock()\n\tl.CacheDirCache[key] = dest\n}\n\nfunc (l *LocalRepositoryCache) remembered(key string) (string, bool) {\n\tcacheDirLock.Lock()\n\tdefer cacheDirLock.Unlock()\n\tdest, ok := l.CacheDirCache[key]\n\treturn dest, ok\n}\n\n&|
s|l\.CacheDirCache\[\(fmt\.Sprintf("%s@%s", cacheDir, ref)\)\] = dest|l.remember(\1, dest)|
s|:= l\.CacheDirCache\[\(fmt\.Sprintf("%s@%s", cacheDir, sha)\)\]; ok|:= l.remembered(\1); ok|
