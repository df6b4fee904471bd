# A build that needs a static busybox and nothing else: no channel, no cache, no internet.
let
  tools = builtins.path { name = "tools"; path = /usr/bin; filter = path: type: baseNameOf path == "busybox"; };
in
derivation {
  name = "hello";
  system = builtins.currentSystem;
  builder = "${tools}/busybox";
  args = [ "sh" "-c" "echo built by $0 > $out" ];
}
