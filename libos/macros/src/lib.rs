//! The attribute macro of fcap-libos.
//!
//! Written on the compiler's own token API: it has one thing to recognize, and
//! applications build faster without a parser for all of Rust.

use proc_macro::{TokenStream, TokenTree};

/// Makes a function the application's entry.
///
/// It stands before `async fn main()` or `fn main()`, without arguments, and returns
/// anything that implements `libos::process::Termination`: nothing, an exit code, or
/// a `Result`.
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, function: TokenStream) -> TokenStream {
    let Some(is_async) = recognize(&function).filter(|_| arguments.is_empty()) else {
        return r#"::core::compile_error!("`#[libos::main]` stands before `async fn main()` or `fn main()`, and takes no arguments");"#
            .parse()
            .expect("the text is Rust");
    };
    let future = if is_async { "main()" } else { "async { main() }" };
    let entry = format!(
        r#"
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        extern "Rust" fn __fcap_main() -> ! {{
            ::libos::process::run(::core::env!("CARGO_CRATE_NAME"), {future})
        }}
        "#
    );
    let mut output = function;
    output.extend(entry.parse::<TokenStream>().expect("the text is Rust"));
    output
}

/// Whether the function is async; `None` if it is not a `main` without arguments.
fn recognize(function: &TokenStream) -> Option<bool> {
    let mut is_async = false;
    let mut tokens = function.clone().into_iter();
    loop {
        match tokens.next()?.to_string().as_str() {
            "async" => is_async = true,
            "fn" => break,
            _ => {}
        }
    }
    let name = tokens.next()?.to_string();
    let Some(TokenTree::Group(parameters)) = tokens.next() else { return None };
    (name == "main" && parameters.stream().is_empty()).then_some(is_async)
}
