//! One suite for every store, and what only files can suffer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;

fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.into(), value: value.into(), lease: None }
}

async fn commit(store: &dyn Store, when: Vec<Compare>, then: Vec<Write>) -> Outcome {
    store.commit(Transaction { when, then }).await.unwrap()
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.range(prefix).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

async fn keys_are_put_read_and_removed(store: Arc<dyn Store>) {
    commit(&*store, vec![], vec![put("b/2", "two"), put("b/1", "one"), put("c", "x")]).await;
    assert_eq!(keys(&*store, "b/").await, ["b/1", "b/2"]);
    assert_eq!(keys(&*store, "").await.len(), 3);
    let entry = store.get("b/1").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (&b"one"[..], 1, 1));
    let outcome = commit(&*store, vec![], vec![put("b/1", "uno"), Write::Delete("b/2".into())]).await;
    assert_eq!(outcome, Outcome { succeeded: true, revision: 2 });
    let entry = store.get("b/1").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (&b"uno"[..], 1, 2));
    assert_eq!(store.get("b/2").await.unwrap(), None);
    // What changes nothing has no revision.
    let outcome = commit(&*store, vec![], vec![Write::Delete("nobody".into())]).await;
    assert_eq!(outcome, Outcome { succeeded: true, revision: 2 });
}

async fn transactions_happen_whole_or_not_at_all(store: Arc<dyn Store>) {
    let absent = || vec![Compare::Absent("a".into())];
    assert!(commit(&*store, absent(), vec![put("a", "1"), put("b", "1")]).await.succeeded);
    assert!(!commit(&*store, absent(), vec![put("a", "2"), put("c", "2")]).await.succeeded);
    assert_eq!(keys(&*store, "").await, ["a", "b"]);
    let modified = |revision| vec![Compare::Modified("a".into(), revision)];
    assert!(!commit(&*store, modified(9), vec![put("a", "3")]).await.succeeded);
    assert!(commit(&*store, modified(1), vec![put("a", "3")]).await.succeeded);
    let value = |text: &str| vec![Compare::Value("a".into(), text.into())];
    assert!(!commit(&*store, value("1"), vec![Write::Delete("a".into())]).await.succeeded);
    assert!(commit(&*store, value("3"), vec![Write::Delete("a".into())]).await.succeeded);
}

async fn of_many_that_want_a_key_one_gets_it(store: Arc<dyn Store>) {
    let tries = (0..16).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let when = vec![Compare::Absent("leader".into())];
            commit(&*store, when, vec![put("leader", &number.to_string())]).await.succeeded
        })
    });
    let got = futures_util::future::join_all(tries).await;
    assert_eq!(got.into_iter().filter(|got| *got.as_ref().unwrap()).count(), 1);
}

async fn watches_hear_of_every_change_in_order(store: Arc<dyn Store>) {
    commit(&*store, vec![], vec![put("a/1", "x")]).await;
    commit(&*store, vec![], vec![put("b/1", "x")]).await;
    let mut watch = store.watch("a/", 1).await.unwrap();
    commit(&*store, vec![], vec![put("a/2", "x"), put("b/2", "x"), put("a/3", "x")]).await;
    commit(&*store, vec![], vec![Write::Delete("a/1".into())]).await;
    let mut heard = Vec::new();
    for _ in 0..3 {
        let batch = watch.next().await.unwrap();
        heard.push(
            batch
                .into_iter()
                .map(|change| (change.revision, change.key, change.entry.is_some()))
                .collect::<Vec<_>>(),
        );
    }
    let change = |revision, key: &str, is_there| (revision, key.to_owned(), is_there);
    assert_eq!(heard[0], [change(1, "a/1", true)]);
    assert_eq!(heard[1], [change(3, "a/2", true), change(3, "a/3", true)]);
    assert_eq!(heard[2], [change(4, "a/1", false)]);
}

async fn watches_do_not_begin_before_what_is_kept(store: Arc<dyn Store>) {
    let many = (0..state::HISTORY + 5).map(|number| put(&format!("k{number:05}"), "x"));
    let many: Vec<Write> = many.collect();
    for some in many.chunks(500) {
        commit(&*store, vec![], some.to_vec()).await;
    }
    let error = store.watch("", 1).await.err().expect("the first changes are gone");
    assert!(matches!(error, StoreError::Compacted { asked: 1, oldest: 2 }), "{error}");
    assert!(store.watch("", 2).await.is_ok());
}

async fn leases_end_with_their_keys_unless_kept_alive(store: Arc<dyn Store>) {
    // Long enough that a busy machine keeps it alive in time.
    let ttl = Duration::from_secs(2);
    let (kept, left) = (store.grant(ttl).await.unwrap(), store.grant(ttl / 10).await.unwrap());
    let hang = |key: &str, lease| Write::Put { key: key.into(), value: vec![], lease: Some(lease) };
    commit(&*store, vec![], vec![hang("kept", kept), hang("left", left), put("free", "")]).await;
    let mut watch = store.watch("left", 2).await.unwrap();
    for _ in 0..11 {
        tokio::time::sleep(ttl / 10).await;
        store.keep_alive(kept).await.unwrap();
    }
    assert_eq!(watch.next().await.unwrap()[0].entry, None);
    assert_eq!(keys(&*store, "").await, ["free", "kept"]);
    assert!(matches!(store.keep_alive(left).await, Err(StoreError::NoSuchLease(_))));
    let late = store.commit(Transaction::of(vec![hang("late", left)])).await;
    assert!(matches!(late, Err(StoreError::NoSuchLease(_))));
    store.revoke(kept).await.unwrap();
    assert_eq!(keys(&*store, "").await, ["free"]);
}

macro_rules! suite {
    ($($test:ident),+ $(,)?) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(std::sync::Arc::new(super::Local::in_memory())).await;
            })+
        }
        mod in_a_file {
            $(#[tokio::test]
            async fn $test() {
                let folder = tempfile::tempdir().unwrap();
                let store = super::Local::open(&folder.path().join("store")).unwrap();
                super::$test(std::sync::Arc::new(store)).await;
            })+
        }
    };
}

suite!(
    keys_are_put_read_and_removed,
    transactions_happen_whole_or_not_at_all,
    of_many_that_want_a_key_one_gets_it,
    watches_hear_of_every_change_in_order,
    watches_do_not_begin_before_what_is_kept,
    leases_end_with_their_keys_unless_kept_alive,
);

#[tokio::test]
async fn a_file_holds_all_that_was_committed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let lease = {
        let store = Local::open(&path).unwrap();
        let lease = store.grant(Duration::from_millis(200)).await.unwrap();
        let hanging = Write::Put { key: "hanging".into(), value: vec![1], lease: Some(lease) };
        commit(&store, vec![], vec![put("a", "1"), hanging]).await;
        commit(&store, vec![], vec![put("a", "2")]).await;
        lease
    };
    let store = Local::open(&path).unwrap();
    let entry = store.get("a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.created, entry.modified), (&b"2"[..], 1, 2));
    let mut watch = store.watch("a", 0).await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].revision, 1);
    assert_eq!(watch.next().await.unwrap()[0].revision, 2);
    // Nobody kept it alive after the store was opened again.
    assert!(store.get("hanging").await.unwrap().is_some());
    let mut watch = store.watch("hanging", 2).await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].entry, None);
    assert!(matches!(store.revoke(lease).await, Err(StoreError::NoSuchLease(_))));
}

#[tokio::test]
async fn a_file_has_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let _store = Local::open(&path).unwrap();
    assert!(matches!(Local::open(&path), Err(StoreError::InUse(_))));
}

#[test]
fn of_many_who_make_a_file_at_once_one_has_it() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let opened = std::thread::scope(|scope| {
            let open = || Local::open(&path);
            let all: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        let others = opened.iter().filter_map(|one| one.as_ref().err());
        assert!(
            others.clone().all(|error| matches!(error, StoreError::InUse(_))),
            "{:?}",
            others.collect::<Vec<_>>()
        );
        assert_eq!(opened.iter().filter(|one| one.is_ok()).count(), 1);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Local::open(&path).unwrap();
    for number in 0..50 {
        commit(&store, vec![], vec![put(&format!("key{number}"), &"x".repeat(1000))]).await;
    }
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let lengths = [0, 1, 100, 319, 4096, 8192, whole.len() / 2, whole.len() - 4096, whole.len() - 1];
    for length in lengths {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error =
            Local::open(&path).err().unwrap_or_else(|| panic!("{length} of {} are enough", whole.len()));
        assert!(matches!(error, StoreError::Damaged { .. }), "{length}: {error:?}");
        assert!(error.to_string().contains("put back a copy"), "{error}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length as u64);
    }
    std::fs::write(&path, b"this is no store").unwrap();
    assert!(matches!(Local::open(&path), Err(StoreError::Damaged { .. })));
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(keys(&Local::open(&path).unwrap(), "").await.len(), 50);
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    drop(Local::open(&path).unwrap());
    set_schema(&path, 7);
    let error = Local::open(&path).err().expect("it is newer");
    assert!(matches!(error, StoreError::Newer { found: 7, known: 1, .. }), "{error}");
}

fn set_schema(path: &Path, schema: u64) {
    let database = redb::Database::open(path).unwrap();
    let write = database.begin_write().unwrap();
    write
        .open_table(redb::TableDefinition::<&str, u64>::new("meta"))
        .unwrap()
        .insert("schema", schema)
        .unwrap();
    write.commit().unwrap();
}
