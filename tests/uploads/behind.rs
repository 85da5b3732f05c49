//! Uploads while long-term storage is far behind.

use carillon::{
    queue::collection::rule::Rule,
    service::{bind::By, records::AliasPolicy, register::FirstRegistration, uploads::Verdict},
};
use carillon_wire::idl;

use crate::{Luck, Moody, Scene};

#[tokio::test(start_paused = true)]
async fn i6_uploads_wait_past_the_limit_and_what_was_taken_is_answered() {
    let moody = Moody::new();
    let scene = Scene::over(moody.clone()).await;
    let service = scene.service();
    let made = service.create_app("devices", AliasPolicy::Server).await.unwrap();
    service.declare(&made.app_id, "notes", Rule::Newest).await.unwrap();
    let (name, key) = (made.app_id.to_string(), made.app_key.reveal().to_owned());
    let device = service.create_device(&name, &key, FirstRegistration::Yes).await.unwrap();
    let regid = device.regid.unwrap().to_string();
    service.bind(&regid, "ann", By::App(&made.app_id)).await.unwrap();
    let upload = async |first: i64, count: i64| {
        let edit = |cseq: i64| idl::Edit {
            cseq,
            collection: "notes".to_owned(),
            key: format!("k{cseq}"),
            value: Some(b"1".to_vec()),
            format: None,
            base_seq: 0,
            clock: cseq,
        };
        let (regid, alias_name) = (regid.clone(), "ann".to_owned());
        let edits = (first..first + count).map(edit).collect();
        let upload = idl::Upload { regid, alias_name, epoch: 1, edits };
        let uploaded = service.upload(&device.device_id, upload).await.unwrap();
        (uploaded.verdict, uploaded.fates.len(), uploaded.next)
    };
    moody.has(Luck::Refuses);
    let mut number = 1;
    while upload(number, 1).await.0 == Verdict::Taken {
        number += 1;
        assert!(number < 100, "it ends");
    }
    assert_eq!(number, 52, "one more than may wait");
    assert_eq!(upload(50, 4).await, (Verdict::Behind, 2, 52));
    assert_eq!(upload(49, 3).await, (Verdict::Taken, 3, 52));
    assert_eq!(upload(1, 0).await, (Verdict::Taken, 0, 52));
    moody.has(Luck::Good);
    scene.all_is_folded().await;
    scene.changes_again().await;
    assert_eq!(upload(50, 4).await, (Verdict::Taken, 4, 54));
}
