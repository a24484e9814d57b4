//! JSON patches (RFC 6902), as far as objects are made of objects: no element of a list is named.

use serde_json::Value;

use crate::objects::Refusal;

/// Carries operations out one after the other, or none.
///
/// # Errors
/// 400 if it is no such patch, 422 if it does not fit the object.
pub fn apply(object: &mut Value, operations: &Value) -> Result<(), Refusal> {
    let none = || Refusal::new(400, "BadRequest", "a JSON patch is a list of operations");
    let operations = operations.as_array().ok_or_else(none)?;
    let mut patched = object.clone();
    for operation in operations {
        let path = operation["path"].as_str().ok_or_else(none)?;
        let what = operation["op"].as_str().ok_or_else(none)?;
        let unfit = || Refusal::new(422, "Invalid", format!("{what} {path:?} does not fit"));
        if what == "test" {
            let is_so = patched.pointer(path) == Some(&operation["value"]);
            is_so.then_some(()).ok_or_else(unfit)?;
            continue;
        }
        let (parent, name) = path.rsplit_once('/').ok_or_else(unfit)?;
        let name = name.replace("~1", "/").replace("~0", "~");
        let parent = patched.pointer_mut(parent).and_then(Value::as_object_mut);
        let parent = parent.ok_or_else(unfit)?;
        let is_there = parent.contains_key(&name);
        match what {
            "add" => _ = parent.insert(name, operation["value"].clone()),
            "replace" if is_there => _ = parent.insert(name, operation["value"].clone()),
            "remove" if is_there => _ = parent.remove(&name),
            "replace" | "remove" => return Err(unfit()),
            _ => return Err(none()),
        }
    }
    *object = patched;
    Ok(())
}
