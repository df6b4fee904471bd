# What the test's workflows build: seven derivations in three levels, without nixpkgs and without inputs. `tools` holds a static
# busybox, which the test puts there, and a file that makes each run's derivations new.
{
  outputs = { self }: {
    packages.x86_64-linux = let
      tools = "${./tools}";
      run = name: inputs: script: derivation {
        inherit name inputs;
        salt = builtins.readFile ./tools/salt;
        system = "x86_64-linux";
        builder = "${tools}/busybox";
        args = [ "sh" "-euc" ''
          busybox=${tools}/busybox
          echo "building $name"
          $busybox sleep 1
          total=0
          for input in $inputs; do total=$((total + $($busybox cat $input))); done
          ${script}
        '' ];
      };
      leaf = n: run "leaf-${toString n}" [ ] "echo ${toString n} > $out";
      middle = name: leaves: run name (map leaf leaves) "echo $total > $out";
      package = run "top" [ (middle "left" [ 1 2 ]) (middle "right" [ 4 8 ]) ] "echo $total > $out";
    in {
      default = package;
      my-package = package;
      # Never ends by itself.
      endless = run "endless" [ ] "echo endless has begun; $busybox sleep 600";
    };
  };
}
