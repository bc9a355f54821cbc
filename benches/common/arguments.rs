//! Flags of the benchmark programs: `--name value`.

use std::collections::HashMap;
use std::str::FromStr;

/// The flags that were given.
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    /// Reads the command line; `None` if this is no benchmark run: `cargo test --benches` starts
    /// the program, too, without the flag that `cargo bench` adds.
    pub fn read(usage: &str) -> Option<Self> {
        let mut given: Vec<String> = std::env::args().skip(1).collect();
        let measure = given.iter().any(|a| a == "--bench");
        given.retain(|a| a != "--bench");
        if !measure || given.iter().any(|a| a == "--help" || a == "-h") {
            println!("{usage}");
            return None;
        }
        let mut flags = HashMap::new();
        let mut rest = given.into_iter();
        while let Some(flag) = rest.next() {
            let name = flag
                .strip_prefix("--")
                .unwrap_or_else(|| refuse(&flag, usage));
            let value = rest.next().unwrap_or_else(|| refuse(&flag, usage));
            if !usage.contains(&format!("--{name} ")) {
                refuse(&flag, usage)
            }
            flags.insert(name.to_owned(), value);
        }
        Some(Self(flags))
    }

    /// The value of a flag, or what it is without it.
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> T {
        match self.0.get(name) {
            None => default,
            Some(text) => text.parse().unwrap_or_else(|_| refuse(text, name)),
        }
    }

    /// The values of a flag that takes a list.
    #[allow(dead_code, reason = "not every benchmark has lists")]
    pub fn list(&self, name: &str, default: &str) -> Vec<String> {
        let text = self.0.get(name).map_or(default, String::as_str);
        let items = text.split(',').filter(|item| !item.is_empty());
        items.map(str::to_owned).collect()
    }
}

fn refuse(what: &str, usage: &str) -> ! {
    eprintln!("not understood: {what}\n{usage}");
    std::process::exit(2)
}
