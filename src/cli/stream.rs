//! `tidelog stream`: makes streams, shows and removes them.

use serde_json::json;
use tidelog_client::Client;
use tidelog_protocol::{StreamDescription, StreamName, StreamSettings};

use super::args::StreamCommand;
use super::connect::{self, connect, failed};
use super::exit::{CliError, Exit};
use super::output::Output;
use super::time;

/// Runs one of them.
///
/// # Errors
///
/// Those of the connection and of the broker.
pub(crate) fn run(command: StreamCommand) -> Result<(), CliError> {
    connect::run(async {
        let mut output = Output::stdout()?;
        match command {
            StreamCommand::Create { name, if_not_exists, client: arguments } => {
                let client = connect(&arguments).await?;
                let stream = client
                    .create_stream(&name, StreamSettings::default(), if_not_exists)
                    .await
                    .map_err(|error| failed(&error))?;
                if arguments.json {
                    output.write_line(described(&stream).as_bytes())?;
                }
                client.close().await;
            }
            StreamCommand::Ls { client: arguments } => {
                let client = connect(&arguments).await?;
                let streams = client.list_streams().await.map_err(|error| failed(&error))?;
                for stream in &streams {
                    let line = if arguments.json { described(stream) } else { stream.name.to_string() };
                    output.write_line(line.as_bytes())?;
                }
                client.close().await;
            }
            StreamCommand::Info { name, client: arguments } => {
                let client = connect(&arguments).await?;
                let stream = client.stream_info(&name).await.map_err(|error| failed(&error))?;
                let text = if arguments.json { described(&stream) } else { table(&stream) };
                output.write_line(text.as_bytes())?;
                client.close().await;
            }
            StreamCommand::Rm { name, yes, client: arguments } => {
                let client = connect(&arguments).await?;
                let removed = remove(&client, &name, yes).await?;
                if arguments.json {
                    output.write_line(described(&removed).as_bytes())?;
                } else {
                    eprintln!("removed {}", contents(&removed));
                }
                client.close().await;
            }
        }
        output.flush()
    })
}

/// Removes the stream that has the name now: by its id, so that no other one of the same name goes instead. Returns it as
/// it was.
async fn remove(client: &Client, name: &StreamName, is_sure: bool) -> Result<StreamDescription, CliError> {
    let found = client.stream_info(name).await.map_err(|error| failed(&error))?;
    if !is_sure {
        let message = format!("{} would be gone for good", contents(&found));
        return Err(CliError::new(Exit::Usage, "not_confirmed", message).with_hint("--yes removes it"));
    }
    let removed = client.remove_stream(found.id).await.map_err(|error| failed(&error))?;
    // Gone already: by the request whose answer was lost, or by somebody else a moment ago.
    Ok(removed.unwrap_or(found))
}

fn contents(stream: &StreamDescription) -> String {
    let StreamDescription { name, head, tail, bytes, .. } = stream;
    format!("stream '{name}' with {} records (offsets {head}..{tail}), {bytes} bytes", tail.get() - head.get())
}

fn described(stream: &StreamDescription) -> String {
    json!({
        "name": stream.name,
        "id": stream.id,
        "head": stream.head,
        "tail": stream.tail,
        "bytes": stream.bytes,
        "created": time::rfc3339(stream.created_ms),
    })
    .to_string()
}

fn table(stream: &StreamDescription) -> String {
    let StreamDescription { name, id, head, tail, bytes, created_ms } = stream;
    let created = time::rfc3339(*created_ms);
    let records = tail.get() - head.get();
    format!(
        "name     {name}\nid       {id}\nrecords  {records} (offsets {head}..{tail})\nbytes    {bytes} stored\ncreated  {created}"
    )
}
