//! The front: what a customer sees. Everything on the page comes from the other two services, found by name.

use serde_json::Value;
use shop::{Response, call, instance, serve, version};

fn page() -> String {
    let (items, orders) = (call("catalogue", "GET", "/items", b""), call("orders", "GET", "/orders", b""));
    let text = |v: &Value| v.as_str().map(str::to_string).unwrap_or_else(|| v.to_string());
    let rows = |list: &Value, cells: &[&str]| -> String {
        let row = |o: &Value| cells.iter().map(|c| format!("<td>{}</td>", text(&o[*c]))).collect::<String>();
        list.as_array().into_iter().flatten().map(|o| format!("<tr>{}</tr>", row(o))).collect()
    };
    let section = |title: &str, answer: Result<Value, String>, key: &str, cells: &[&str]| match answer {
        Ok(v) => format!("<h2>{title}</h2><p>answered by {}</p><table>{}</table>", text(&v["instance"]), rows(&v[key], cells)),
        Err(why) => format!("<h2>{title}</h2><p class=bad>{why}</p>"),
    };
    format!(
        "<!doctype html><title>The shop</title><style>body{{font:16px sans-serif;max-width:40em;margin:2em auto}}td{{padding:.2em 1em .2em 0}}.bad{{color:#b00}}</style>\
         <h1>The shop</h1><p>front version {}, instance {}</p>{}{}\n",
        version(),
        instance(),
        section("Catalogue", items, "items", &["name", "price"]),
        section("Orders", orders, "orders", &["number", "item", "price"]),
    )
}

fn main() -> std::io::Result<()> {
    serve("front", |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => Response::html(page()),
        ("POST", path) if path.starts_with("/order/") => match call("orders", "POST", "/orders", &path.as_bytes()["/order/".len()..]) {
            Ok(order) => Response::json(&order),
            Err(why) => Response::text(502, &why),
        },
        ("GET", "/version") => Response::text(200, &version()),
        _ => Response::text(404, "try / or POST /order/tea"),
    })
}
